"""Kills in a pipeline with everything in it: statistics, penalties, transforms, a refusal, recoveries, disk undo."""

from __future__ import annotations

import shutil
import signal

import pytest

RICH = {
    "run__undo": '"disk"',
    "phases__medical_dictionary__retention": "{drift-guard = {sketch = 4}}",
    "phases__mcq__retention": "{covariance-merge = {sketch = 0}}",
    # Nothing can gain this much: the gate refuses whatever is tried, until the adapter is kept apart.
    "phases__medical_dictionary__gate__min-gain": "{absolute = 1e6}",
    "phases__medical_dictionary__recover": "{train-on = {steps = 3}, scale-search = {scales = [0.5]}, keep-apart = true}",
}


@pytest.fixture(scope="module")
def rich(server, shelf):
    """The whole of it, not stopped."""
    out = shelf / "rich"
    answer = server.run(out, settings=RICH, disk={"kind": "Counting"})
    assert answer["code"] == 0, answer["message"]
    return out, answer


def test_recoveries_and_transforms_survive_kills(
    server, rich, same_end, kills, places, counted
):
    """Refused, trained on, scaled, kept apart, transformed: wherever it is killed, it ends in the same bits."""
    reference, operated = rich
    wanted = max(5, kills // 4)
    count = counted(
        "kills resumed with equal digests", wanted, "among recoveries and transforms"
    )
    for i in range(wanted):
        run, at = next(places), 1 + int(operated["count"] * (i + 0.5) / wanted)
        disk = {"kind": "Killing", "at": at, "when": ("before", "after", "half")[i % 3]}
        assert server.run(run, settings=RICH, disk=disk)["signal"] == signal.SIGKILL
        answer = (
            server.resume(run)
            if (run / "run.toml").exists()
            else server.run(run, settings=RICH)
        )
        assert answer["code"] == 0, answer["message"]
        same_end(run, reference)
        shutil.rmtree(run)
        count.right += 1


def test_what_is_tried_is_on_record(rich):
    """The reference really went through all of it."""
    from mgk_core.record.ledger import read_ledger

    entries = {e.phase: e for e in read_ledger(rich[0]).phases}
    assert entries["medical_dictionary"].result == "kept_apart"
    assert [a.method for a in entries["medical_dictionary"].attempts] == [
        "train-on",
        "scale-search",
        "keep-apart",
    ]
    assert entries["mcq"].result == "committed"
    assert entries["mcq"].transforms
