"""Runs of several processes: the same bits as one process, and errors that are everyone's."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from mgk_core.config.resolve import load_tree
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.run.setup import prepare
from mgk_core.tools.plan import make_plan
from mgk_core.tools.verify_run import audit

pytestmark = pytest.mark.distributed

TIMES = {"journal.jsonl", "metrics.jsonl", "report.html"}
"""Files with times in them: all others have the same bytes on any number of ranks."""


PARTS = (
    "settings",
    "sums",
    "failures",
    "korean",
    "apart",
    "full",
    "traffic",
    "wrong",
    "reductions",
)


@pytest.fixture(scope="module")
def two(ranks):
    """The directory in which two ranks did everything once."""
    return ranks(2, *PARTS, limit=500)


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
        "korean-medical",
        out=tmp_path / "alone",
        overrides=read(two, "settings")["tiny"],
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


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("not_a_number", "MergeError", "finite"),
        ("merged_wrong", "EnvironmentFault", "the merged base: rank 1 of 2 has other"),
    ],
)
def test_a_merge_that_goes_wrong_on_one_rank_is_undone_on_all(two, fault, kind, words):
    """Each rank raises the same error with its base bit-identical; a resumed run ends as one without the fault."""
    leader, failing = read(two, "wrong")[fault]
    assert leader == failing
    raised, text, restored, merges = leader
    assert raised == kind
    assert words in text
    assert restored is True
    assert merges == 1
    assert digests(two / fault) == digests(two / "small")


def test_the_plans_traffic_is_what_a_rank_receives(two):
    """All steps of three phases of five micro-batches, counted where they travel: within five percent."""
    overrides = [
        f"{k}={json.dumps(v)}" for k, v in read(two, "settings")["small"].items()
    ]
    plan = make_plan(prepare(load_tree("textmodel", None, overrides)), ranks=2)
    planned = sum(p.steps * p.rank.received for p in plan.phases)
    assert plan.phases[0].rank.turns == 2
    assert plan.phases[0].rank.repeated == 1
    assert read(two, "traffic") == pytest.approx(planned, rel=0.05)


def test_only_the_sum_in_order_trains_the_delta_of_one_process(two):
    """An all-reduce is off by rounding, and the mean of the ranks' means, DDP's own, by a tenth and more."""
    for found in read(two, "reductions").values():
        assert found["in_order"] == 0
        assert 0 < found["all_reduce"] < 1e-5
        assert found["mean_of_means"] > 0.1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_and_one_process_continues_it(
    mgk, two, tmp_path, rank
):
    """The survivor names the rank at once, exit code 3; the resumed run has the bits of one never killed."""
    out = tmp_path / "killed"
    settings = read(two, "settings")["small"] | {"defaults.train.checkpoint_steps": 1}
    chosen = [f"--set={k}={json.dumps(v)}" for k, v in settings.items()]
    running = mgk(
        "run", "textmodel", "--nproc", 2, "--out", out, *chosen,
        MGK_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    journal = out / "journal.jsonl"
    until(lambda: journal.is_file() and '"checkpoint"' in journal.read_text())
    os.kill(process_of(running.pid, rank), signal.SIGKILL)
    began = time.monotonic()
    _, printed = running.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert running.returncode == 3
    assert f"rank {rank} (process" in printed
    resume_run(out)
    assert digests(out)[1] == digests(two / "small")[1]


def until(true, seconds=300):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def process_of(parent, rank):
    """Return the process of a rank, a child of the launcher."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    children = " ".join((t / "children").read_text() for t in tasks).split()
    wanted = f"RANK={rank}".encode()
    return next(
        int(c)
        for c in children
        if wanted in Path(f"/proc/{c}/environ").read_bytes().split(b"\0")
    )


@pytest.mark.slow
def test_four_ranks_write_the_run_that_two_write(two, ranks):
    """More ranks than some steps have micro-batches: the same bytes."""
    four = ranks(4, "settings", "korean", limit=600)
    assert digests(four / "korean") == digests(two / "korean")
    assert different(four / "korean", two / "korean") == []
