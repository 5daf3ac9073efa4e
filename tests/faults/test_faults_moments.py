"""Kills and full disks at the moments that take longest: the baseline, an export, writing the model."""

from __future__ import annotations

import errno
import random
import shutil
import signal

import pytest

from mgk_core.tools.verify_run import audit

KILLS = "kills resumed with equal digests"


def numbers_of(whole, name):
    """Return the numbers of the operations on one path, counted from 1, of a run that nothing stopped."""
    return [
        n
        for n, done in enumerate(whole[1]["names"], 1)
        if done.split(" ", 1)[1] == name
    ]


@pytest.mark.parametrize("event", ["part", "evaluation"])
def test_killed_during_the_baseline(
    server, whole, go_on, same_end, places, counted, event
):
    """Before the first probe is scored and before its scores are committed: the baseline is scored again."""
    count = counted(KILLS, 1, "during the baseline")
    run = next(places)
    part = {"signal_part": "evaluation"} if event == "part" else {}
    answer = server.run(run, signal_at={event: int(signal.SIGKILL)}, **part)
    assert answer["signal"] == signal.SIGKILL, answer
    assert not (run / "ledger.json").exists()
    go_on(run)
    same_end(run, whole[0])
    count.right += 1


@pytest.mark.slow
def test_killed_while_the_model_is_written(
    server, whole, go_on, same_end, places, counted
):
    """At every operation on model/: it is never there in part, and the resumed run ends in the same bits."""
    wanted = sorted({*numbers_of(whole, ".tmp-model"), *numbers_of(whole, "model")})
    assert len(wanted) >= 3
    points = [(at, when) for at in wanted for when in ("before", "after", "half")]
    count = counted(KILLS, len(points), "while the model is written")
    for at, when in points:
        run = next(places)
        answer = server.run(run, disk={"kind": "Killing", "at": at, "when": when})
        assert answer["signal"] == signal.SIGKILL, (at, when, answer)
        if (run / "model").exists():
            assert (run / "model/model.safetensors").read_bytes() == (
                whole[0] / "model/model.safetensors"
            ).read_bytes()
        go_on(run)
        same_end(run, whole[0])
        shutil.rmtree(run)
        count.right += 1


def test_a_disk_that_fills_while_the_model_is_written(
    server, whole, go_on, same_end, places
):
    """Every phase is committed already: the message names model/, and resume only writes it."""
    produced = [n for n in whole[1]["names"] if n.startswith("produce ")]
    at = produced.index("produce .tmp-model") + 1
    run = next(places)
    full = {"kind": "Forbidding", "names": ["produce"], "error": errno.ENOSPC, "at": at}
    answer = server.run(run, disk=full)
    assert answer["code"] == 3, answer
    assert "model: cannot be written: No space left on device" in answer["message"]
    assert not (run / "model").exists()
    assert not list(run.rglob(".tmp-*"))
    again = go_on(run, tell=("step",))
    assert again["told"] == []  # nothing is trained again
    same_end(run, whole[0])


@pytest.mark.slow
def test_killed_while_it_exports(server, whole, places, counted):
    """The adapter is there whole or not at all, the run is untouched, and the next export succeeds."""
    run = whole[0]
    out = next(places) / "adapter"
    out.parent.mkdir()
    answer = server("export", run, to=str(out))
    assert answer["code"] == 0, answer
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    span, draw = answer["seconds"], random.Random(3)
    tries = 6
    count = counted("kills during an export, done again", tries)
    for _ in range(tries):
        shutil.rmtree(out, ignore_errors=True)
        server("export", run, to=str(out), kill_after=draw.uniform(0, span))
        if out.exists() and any(out.iterdir()):
            assert {p.name: p.read_bytes() for p in out.iterdir()} == files
            shutil.rmtree(out)
        answer = server("export", run, to=str(out))
        assert answer["code"] == 0, answer
        assert {p.name: p.read_bytes() for p in out.iterdir()} == files
        count.right += 1
    assert audit(run).findings == []
