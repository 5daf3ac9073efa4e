"""A run that is killed, wherever that may be, goes on and ends in the same bits."""

from __future__ import annotations

import json
import random
import shutil
import signal

import pytest

from mgk_core.record.journal import open_journal
from mgk_core.record.store import Store

WHEN = ("before", "after", "half")
KILLS = "kills resumed with equal digests"


def operations(total, wanted):
    """Choose (operation, when) evenly; every operation where that many are wanted."""
    if wanted >= 150:
        wanted = max(wanted, total)
    step = total / wanted
    return [(1 + int(i * step), WHEN[i % len(WHEN)]) for i in range(wanted)]


def test_killed_at_operations_of_the_store_and_journal(
    server, whole, go_on, same_end, kills, places, counted
):
    """SIGKILL before, after or in the middle of a write: resume ends as if nothing had been."""
    reference, operated = whole
    points = operations(operated["count"], kills * 3 // 4)
    count = counted(KILLS, len(points), "at operations of the journal and the store")
    for at, when in points:
        run = next(places)
        answer = server.run(run, disk={"kind": "Killing", "at": at, "when": when})
        assert answer["signal"] == signal.SIGKILL, (at, when, answer)
        go_on(run)
        same_end(run, reference)
        shutil.rmtree(run)
        count.right += 1


def test_killed_at_random_times(server, whole, go_on, same_end, kills, places, counted):
    """SIGKILL at whatever instant: resume ends as if nothing had been."""
    reference, operated = whole
    draw, left = random.Random(0), kills - kills * 3 // 4
    count = counted(KILLS, left, "at random times")
    span = operated["seconds"]
    for _ in range(left):
        run = next(places)
        answer = server.run(run, kill_after=draw.uniform(0, 0.95 * span))
        while answer["signal"] is None:  # it was faster than the reference
            shutil.rmtree(run)
            span *= 0.9
            answer = server.run(run, kill_after=draw.uniform(0, 0.95 * span))
        go_on(run)
        same_end(run, reference)
        shutil.rmtree(run)
        count.right += 1


def test_killed_again_while_it_goes_on(server, whole, go_on, same_end, places):
    """A resumed run may be killed as well, again and again, and still ends in the same bits."""
    reference, operated = whole
    draw, run = random.Random(1), next(places)
    server.run(
        run, disk={"kind": "Killing", "at": operated["count"] // 4, "when": "after"}
    )
    for _ in range(4):
        server.resume(
            run,
            disk={
                "kind": "Killing",
                "at": draw.randint(5, 40),
                "when": draw.choice(WHEN),
            },
        )
    go_on(run)
    same_end(run, reference)
    events = [e["event"] for e in open_journal(Store(run)).events]
    assert events.count("resumed") >= 2


def test_a_fork_that_is_killed_goes_on(server, whole, go_on, places):
    """`mgk phase` into a new directory may be killed while it copies, and is resumed like any run."""
    reference, _ = whole
    for at in (8, 14, 20, 30):
        run = next(places)
        killing = {"kind": "Killing", "at": at, "when": "after"}
        answer = server("phase", run, of=str(reference), phase="mcq", disk=killing)
        assert answer["signal"] == signal.SIGKILL
        go_on(run)
        ledgers = [
            json.loads((d / "ledger.json").read_text()) for d in (run, reference)
        ]
        for ledger in (
            ledgers
        ):  # the card's configuration has each value's source, here a run.toml
            assert ledger["files"].pop("model/mgk-run.toml")
        assert ledgers[0] == ledgers[1]


def test_a_stale_lock_is_recognised(server, places):
    """What a killed process left locked is taken over, and told."""
    run = next(places)
    server.run(run, disk={"kind": "Killing", "at": 60, "when": "before"})
    assert (run / ".lock").exists()
    answer = server.resume(run)
    assert any("left a stale lock" in e["text"] for e in answer["told"])
    assert not (run / ".lock").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]
)
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(
    server, whole, go_on, same_end, places, number
):
    """A signal, a job scheduler's notice (SIGUSR1) among them: the step is finished, a checkpoint written,
    exit code 130 with the command to go on.
    """
    run = next(places)
    answer = server.run(run, signal_at={"step": int(number)}, signal_step=3)
    assert answer["code"] == 130
    assert f"mgk resume {run}" in answer["message"]
    assert (run / "phases/0-plain_text/checkpoint/step-00000003/state.json").exists()
    answer = go_on(run)
    assert any(
        "resumed after step 3 of 7; the next batch's loss is" in e["text"]
        for e in answer["told"]
    )
    same_end(run, whole[0])


def test_time_that_is_up_finishes_the_step_and_leaves_a_checkpoint(
    server, whole, go_on, same_end, places
):
    """`--minutes`: like a signal, before a limit kills the process; again and again, to the same end."""
    reference, operated = whole
    run, codes = next(places), []
    for part in (1e-9, 0.3, 0.6):
        begun = (run / "run.toml").exists()
        minutes = part * operated["seconds"] / 60
        answer = (server.resume if begun else server.run)(run, minutes=minutes)
        codes.append(answer["code"])
        assert (
            answer["code"] == 0 or f"Resume with: mgk resume {run}" in answer["message"]
        )
    assert codes[0] == 130
    go_on(run)
    same_end(run, reference)


def test_a_signal_while_the_base_is_scored(server, whole, go_on, same_end, places):
    """Between two probes of row 0: stopped there, and scored again by the resumed run."""
    run = next(places)
    answer = server.run(
        run, signal_at={"part": int(signal.SIGTERM)}, signal_part="evaluation"
    )
    assert answer["code"] == 130
    assert "stopped while the untouched base was scored" in answer["message"]
    go_on(run)
    same_end(run, whole[0])


def test_a_hang_up_that_was_ignored_stays_ignored(server, whole, same_end, places):
    """Under nohup a closed terminal does not end the run."""
    run = next(places)
    answer = server.run(
        run, signal_at={"step": int(signal.SIGHUP)}, ignore=[int(signal.SIGHUP)]
    )
    assert answer["code"] == 0, answer["message"]
    same_end(run, whole[0])


def test_a_finished_run_is_checked_and_told_again(server, whole):
    """Resuming what has finished changes nothing."""
    run, _ = whole
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    answer = server.resume(run)
    assert answer["code"] == 0
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
