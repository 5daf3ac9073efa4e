"""When checkpoints are written, how many stay, and that the best step is in them."""

from __future__ import annotations

import signal

import pytest
import torch
from safetensors.torch import load_file

OFTEN = {
    "defaults__train__checkpoint_steps": "1000",
    "defaults__train__checkpoint_minutes": "1e-9",
}
SELDOM = OFTEN | {"defaults__train__checkpoint_minutes": "60.0"}


def names(run, phase):
    """Return the checkpoints of a phase."""
    return sorted(p.name for p in (run / "phases" / phase / "checkpoint").iterdir())


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (OFTEN, [2, 3]),
        (OFTEN | {"defaults__train__keep_checkpoints": "3"}, [1, 2, 3]),
        (SELDOM, [3]),
        (
            SELDOM
            | {
                "defaults__train__checkpoint_steps": "1",
                "defaults__train__keep_checkpoints": "1",
            },
            [3],
        ),
    ],
)
def test_by_minutes_by_steps_and_the_last_n(server, go_on, places, settings, steps):
    """Whichever falls due first; a signal writes one more; older ones go once the new one is there."""
    run = next(places)
    answer = server.run(
        run, settings=settings, signal_at={"step": int(signal.SIGTERM)}, signal_step=3
    )
    assert answer["code"] == 130
    assert names(run, "0-plain_text") == [f"step-{s:08d}" for s in steps]
    go_on(run)


def test_the_best_step_is_kept_beside_the_last(server, whole, go_on, same_end, places):
    """With keep = "best" a checkpoint holds both, and they differ; the resumed run merges the same best step."""
    run = next(places)
    settings = {
        "phases__medical_dictionary__optimizer": '{type = "sgd", lr = 0.3}'
    }  # far too much: the first is best
    reference = next(places)
    assert server.run(reference, settings=settings)["code"] == 0
    answer = server.run(
        run, settings=settings, signal_at={"dev": int(signal.SIGTERM)}, signal_step=4
    )
    assert answer["code"] == 130, answer
    folder = (
        run
        / "phases/1-medical_dictionary/checkpoint"
        / names(run, "1-medical_dictionary")[-1]
    )
    best, last = (
        load_file(folder / "best.safetensors"),
        load_file(folder / "adapter.safetensors"),
    )
    assert best.keys() == last.keys()
    assert not all(torch.equal(best[k], last[k]) for k in best)
    go_on(run)
    same_end(run, reference)
