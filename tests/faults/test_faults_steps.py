"""Steps that are not finite: left out and counted; after too many in a row a stop that says where it began."""

from __future__ import annotations

import json

import pytest

PLUGIN = """
import math

import torch

from mgk_core.contract.hookspecs import hookimpl


@hookimpl
def mgk_loss_terms(ctx):
    return {"faulty": term} if ctx.phase.name == "mcq" else None


def term(step):
    return torch.tensor(math.nan if step in BAD else 0.0)
"""


def test_a_bad_step_is_left_out_and_counted(server, places, plugin):
    """One NaN: that step changes nothing, the log counts it, training goes on."""
    run = next(places)
    path = plugin("import math\nBAD = (1,)\n" + PLUGIN)
    answer = server.run(run, path=[path])
    assert answer["code"] == 0, answer["message"]
    events = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    skipped = {
        (e["phase"], e["step"]): e["skipped"] for e in events if e["event"] == "step"
    }
    assert sum(skipped.values()) == skipped["mcq", 3] == 1


def test_bad_steps_survive_a_kill(server, places, plugin, same_end):
    """A checkpoint between NaN steps holds them: the resumed log counts the same."""
    path = plugin("BAD = (1, 2)\n" + PLUGIN)
    settings = {
        "phases__mcq__train__log_every": 4,
        "defaults__train__checkpoint_steps": 1,
    }
    reference, run = next(places), next(places)
    counted = server.run(
        reference, path=[path], settings=settings, disk={"kind": "Counting"}
    )
    at = [i for i, n in enumerate(counted["names"], 1) if n == "rename step-00000002"][
        2
    ]
    assert server.run(
        run,
        path=[path],
        settings=settings,
        disk={"kind": "Killing", "at": at, "when": "after"},
    )["signal"]
    assert server.resume(run, path=[path])["code"] == 0
    same_end(run, reference)


def test_too_many_bad_steps_stop_the_phase(server, places, plugin):
    """N in a row: the phase stops, says after which step, and keeps the last good checkpoint."""
    run = next(places)
    path = plugin("BAD = range(100)\n" + PLUGIN)
    answer = server.run(
        run, path=[path], settings={"defaults__train__max_bad_steps": 3}
    )
    assert answer["code"] == 2
    assert "3 steps in a row up to step 3" in answer["message"]
    assert "the loss term 'faulty' of plugin" in answer["message"]
    assert "phases.mcq.optimizer.lr" in answer["message"]
    assert list((run / "phases/2-mcq/checkpoint").iterdir())


BROKEN_ROWS = """
from attrs import evolve, frozen

from mgk_core.contract.hookspecs import hookimpl


@frozen
class Broken:
    rows: object
    digest = "broken"

    def __len__(self):
        return len(self.rows)

    def batch(self, rows):
        batch = self.rows.batch(rows)
        return evolve(batch, inputs=batch.inputs / 0.0)


@hookimpl(wrapper=True)
def mgk_load_data(spec, bundle):
    data = yield
    return evolve(data, train=Broken(data.train))
"""


def test_the_layer_that_went_bad_is_named(server, places):
    """By replaying the step: the first layer whose output, or gradient, is not finite."""
    settings = {
        "phases__mcq__optimizer__lr": "1e30",
        "defaults__train__max_bad_steps": 2,
    }
    answer = server.run(next(places), settings=settings)
    assert answer["code"] == 2, answer
    assert "the first layer with a non-finite output is" in answer["message"]


def test_a_loss_that_is_not_finite_is_named_where_every_layer_is(
    server, places, plugin
):
    """Training targets so large that their square overflows: the loss went bad, and no layer."""
    large = BROKEN_ROWS.replace(
        "inputs=batch.inputs / 0.0", "targets=batch.targets * 1e30"
    )
    settings = {"defaults__train__max_bad_steps": 2}
    answer = server.run(next(places), path=[plugin(large)], settings=settings)
    assert answer["code"] == 2, answer
    assert (
        "every layer is finite, and the loss is the first that is not"
        in answer["message"]
    )


@pytest.mark.parametrize("setting", ["noise_std", "spread"])
def test_a_baseline_that_is_not_finite_is_named_before_training(
    server, places, setting
):
    """A probe that the untouched base cannot score: its name and value, and where to look."""
    answer = server.run(
        next(places), settings={f"phases__mcq__data__{setting}": "1e39"}
    )
    assert answer["code"] == 2, answer
    assert (
        "probe 'mcq': its squared_error on the untouched base is" in answer["message"]
    )


def test_an_adapter_that_gives_nothing_finite_is_not_merged(server, places):
    """Every step was finite and the last outputs are not: told before the merge, with what to lower."""
    settings = {
        "phases__mcq__optimizer": '{type = "sgd", lr = 1e30}',
        "phases__mcq__train__steps": 1,
    }
    answer = server.run(next(places), settings=settings)
    assert answer["code"] == 2, answer
    assert "phase 'mcq': after training the outputs are not finite" in answer["message"]
    assert "lower phases.mcq.optimizer.lr" in answer["message"]


def test_data_that_is_not_finite_is_told_apart(server, places, plugin):
    """Where the first layer's input is not finite already, the data is to blame, and named."""
    answer = server.run(
        next(places),
        path=[plugin(BROKEN_ROWS)],
        settings={"defaults__train__max_bad_steps": 2},
    )
    assert answer["code"] == 2, answer
    assert (
        "'layer1', whose input is not finite either: look at the data of that step"
        in answer["message"]
    )


def test_a_base_that_gives_nothing_finite_is_not_the_adapters_fault(
    server, places, plugin
):
    """Verification batches that the bare base answers with NaN are an error before training."""
    broken = BROKEN_ROWS.replace(
        "train=Broken(data.train)", "verify=(Broken(data.train).batch([0, 1]),)"
    )
    answer = server.run(next(places), path=[plugin(broken)])
    assert answer["code"] == 2, answer
    assert (
        "the base's outputs on the verification batches are not finite"
        in answer["message"]
    )
