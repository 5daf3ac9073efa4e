"""Runs of several processes: the same bits as one process, and errors that are everyone's."""

import json

import pytest

from mgk_core.run.runner import run_pipeline
from mgk_core.tools.verify_run import audit

pytestmark = pytest.mark.distributed

TIMES = {"journal.jsonl", "metrics.jsonl", "report.html"}
"""Files with times in them: all others have the same bytes on any number of ranks."""


@pytest.fixture(scope="module")
def two(ranks):
    """The directory in which two ranks did everything once."""
    return ranks(2, "settings", "sums", "failures", "korean", "apart", "full")


def read(where, part):
    """Return what the leader wrote of a part."""
    return json.loads((where / f"{part}.json").read_text())


def digests(run):
    """Return the digests and results of a ledger."""
    ledger = json.loads((run / "ledger.json").read_text())
    phases = [
        (p["base"], p["adapter"], p["merged"], p["result"]) for p in ledger["phases"]
    ]
    return ledger["base"], phases, ledger["model"], ledger["saved"]


def different(one, other):
    """Return the files of two runs whose bytes differ, those with times left out."""
    names = {
        p.relative_to(run).as_posix()
        for run in (one, other)
        for p in run.rglob("*")
        if p.is_file()
    }
    return sorted(
        n
        for n in names - TIMES
        if not ((one / n).is_file() and (other / n).is_file())
        or (one / n).read_bytes() != (other / n).read_bytes()
    )


def test_a_sum_over_ranks_has_the_bits_of_one_process(two):
    """Counts from 1 to 7 on two ranks, numbers of ten magnitudes, three dtypes, an empty tensor."""
    found = read(two, "sums")
    assert all(found["equal"])
    assert len(found["equal"]) == 35
    assert found["dealt"] == [0, 1, 4, 9, 16]
    assert found["ranks"] == [0, 1]
    assert found["refused"].startswith("gather: only plain values travel between ranks")


def test_an_error_on_one_rank_is_raised_on_all(two):
    """The kind of error, and whether it is a lack of memory, travel with it."""
    leader, failing = read(two, "failures")
    assert leader["merge"] == failing["merge"]
    assert leader["memory"] == ["MemoryError", "no more", True]
    assert failing["other"][0] == "ZeroDivisionError"
    assert leader["other"][0] == "PeerFailed"
    assert "rank 1" in leader["other"][1]
    assert (
        leader["store"] == failing["store"] == ["StoreError", "the disk is full", False]
    )


def test_two_ranks_write_the_run_that_one_process_writes(two, tmp_path, monkeypatch):
    """Three phases on the tiny base with drift-guard: every file but those with times has the same bytes."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    run_pipeline(
        "korean-medical", out=tmp_path / "alone", overrides=read(two, "settings")
    )
    assert digests(two / "korean") == digests(tmp_path / "alone")
    assert different(two / "korean", tmp_path / "alone") == []


def test_ranks_that_come_apart_or_fail_alone_end_at_once(two):
    """The leader gets the other rank's own error; where both are at different places, both are named."""
    alone, parted, seconds = read(two, "apart")
    assert alone == ["InputError", "a file of its own is missing"]
    assert parted[0] == "EnvironmentFault"
    assert "rank 0 at 'any'" in parted[1]
    assert "rank 1 at 'gather'" in parted[1]
    assert seconds < 30


def test_a_full_disk_on_the_leader_is_everyones_and_the_run_continues(two):
    """Nothing hangs, and the resumed run has the digests of one that never failed."""
    assert "No space left on device" in read(two, "full")
    assert digests(two / "full") == digests(two / "small")
    assert audit(two / "full").sound
