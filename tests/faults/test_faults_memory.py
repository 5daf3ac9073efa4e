"""Out of memory: what did not fit and what to lower; with auto_batch the step is made to fit."""

from __future__ import annotations

import re

import pytest
import torch

from mgk_core.record.journal import open_journal
from mgk_core.record.store import Store

WIDE = {  # activations of a whole batch take far more than the network
    "base__widths": "[16, 4096, 16]",
    "defaults__adapter__targets": '["layer1"]',
    "PHASE__data__size": "4096",
    "PHASE__train__batch_size": "4096",
    "PHASE__train__micro_batch": "4096",
    "phases__plain_text__train__steps": "2",
    "phases__plain_text__adapter__dropout": "0.0",
}
ROOM = 160 * 2**20


def test_a_step_that_does_not_fit_is_told(server, places):
    """RLIMIT_AS, the real thing: step, phase, examples, bytes, and which key to lower; resumable after that."""
    run = next(places)
    answer = server.run(
        run, settings=WIDE, limits={"RLIMIT_AS": ROOM}, until="plain_text"
    )
    assert answer["code"] == 3, answer
    message = answer["message"]
    assert re.search(
        r"out of memory in step 1 of phase 'plain_text', with 4096 examples in memory at once",
        message,
    )
    assert re.search(r"tried to allocate [\d,.]+ MiB", message)
    assert "'mgk resume RUN --auto-batch'" in message
    assert "or lower phases.plain_text.train.micro_batch" in message
    config = run / "run.toml"
    config.write_text(
        config.read_text().replace("micro_batch = 4096", "micro_batch = 256")
    )
    refused = server.resume(run, until="plain_text")
    assert (
        "config.phases.plain_text.train.micro_batch: was 4096, is 256"
        in refused["message"]
    )
    keys = [
        f"config.phases.{p}.train.micro_batch"
        for p in ("plain_text", "medical_dictionary", "mcq")
    ]
    assert server.resume(run, until="plain_text", accept=keys)["code"] == 0


def test_auto_batch_halves_until_it_fits(server, places):
    """The same batch in smaller parts; told, on record, and the same step up to rounding."""
    free, tight = next(places), next(places)
    settings = WIDE | {"run__auto_batch": "true"}
    answer = server.run(
        tight,
        settings=settings,
        limits={"RLIMIT_AS": ROOM},
        until="plain_text",
        tell=["note", "step"],
    )
    assert answer["code"] == 0, answer["message"]
    halved = [
        e for e in open_journal(Store(tight)).events if e["event"] == "auto_batch"
    ]
    sizes = [e["micro_batch"] for e in halved]
    assert sizes == [4096 >> (i + 1) for i in range(len(sizes))]
    assert len(sizes) >= 1
    assert any(
        f"{sizes[-1]} examples in memory at once from here on" in e.get("text", "")
        for e in answer["told"]
    )
    whole = server.run(free, settings=settings, until="plain_text", tell=["step"])
    losses = [
        [e["loss"] for e in a["told"] if e["event"] == "step"] for a in (answer, whole)
    ]
    # Sums of 4096 positive terms in another order: at most n·eps apart, relatively.
    assert all(abs(a - b) <= 4096 * 2**-23 * b for a, b in zip(*losses, strict=True))
    assert [
        e for e in open_journal(Store(free)).events if e["event"] == "auto_batch"
    ] == []


def test_a_run_that_did_not_fit_goes_on_in_smaller_parts(server, places):
    """`mgk resume --auto-batch` is the mend that the message names: run.toml stays, the halving is on record."""
    run = next(places)
    limits = {"RLIMIT_AS": ROOM}
    assert (
        server.run(run, settings=WIDE, limits=limits, until="plain_text")["code"] == 3
    )
    before = (run / "run.toml").read_bytes()
    assert server.resume(run, limits=limits, until="plain_text")["code"] == 3
    answer = server.resume(run, limits=limits, until="plain_text", auto_batch=True)
    assert answer["code"] == 0, answer["message"]
    assert (run / "run.toml").read_bytes() == before
    assert open_journal(Store(run)).last("auto_batch") is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_that_does_not_fit_on_the_device(server, places):
    """CUDA's own out-of-memory is told like the system's, and --auto-batch goes on from it."""
    run, settings = next(places), WIDE | {"run__device": '"cuda"'}
    answer = server.run(run, settings=settings, cuda_room=ROOM, until="plain_text")
    assert answer["code"] == 3, answer
    assert re.search(
        r"out of memory in step 1 of phase 'plain_text', with 4096 examples",
        answer["message"],
    )
    assert "tried to allocate" in answer["message"]
    answer = server.resume(run, cuda_room=ROOM, until="plain_text", auto_batch=True)
    assert answer["code"] == 0, answer["message"]
    assert open_journal(Store(run)).last("auto_batch") is not None


def test_a_base_that_does_not_fit_is_told(server, places):
    """Out of memory while the base is made: says so, and nothing is left behind."""
    run = next(places)
    wide = {"base__widths": "[64, 16384, 8192, 6]", "defaults__data__items": "6"}
    answer = server.run(run, settings=wide, limits={"RLIMIT_AS": ROOM})
    assert answer["code"] == 3, answer
    assert "out of memory (load)" in answer["message"]
    assert "smaller base" in answer["message"]
    assert not run.exists()
