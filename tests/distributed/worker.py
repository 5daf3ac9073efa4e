"""What each rank of a test does; started by torchrun's agent: ``python worker.py DIRECTORY PART …``.

The leader writes what was found to ``DIRECTORY/PART.json``.
"""

import json
import sys
import time
from pathlib import Path

import torch

from mgk_core.contract.errors import InputError, MergeError, StoreError
from mgk_core.contract.world import World
from mgk_core.model.device import is_out_of_memory
from mgk_core.record.disk import Disk
from mgk_core.run.join import joined
from mgk_core.run.runner import resume_run, run_pipeline

TINY = {
    "base.id": "tiny-gemma",
    "run.threads": 1,
    "run.reuse_baseline": False,
    "defaults.evaluate.limit": 6,
    "defaults.gate.min-gain": False,  # a few steps on random weights teach nothing
    "defaults.train.batch_size": 7,
    "defaults.train.micro_batch": 2,
    "phases.plain_text.train.steps": 3,
    "phases.dictionary.train.steps": 2,
    "phases.mcq.train.steps": 2,
}
SMALL = {
    "run.threads": 1,
    "run.save_model": False,
    "defaults.train.steps": 8,
    "defaults.train.batch_size": 30,
    "defaults.train.micro_batch": 7,
    "defaults.gate.min-gain": False,
}


def korean(where, world):
    """The shipped pipeline on the tiny base, its phases shortened."""
    run_pipeline("korean-medical", out=where / "korean", overrides=TINY)


def settings(where, world):
    """What `korean` was run with, for a process that does the same alone."""
    return TINY


def sums(where, world):
    """Sums in order, against those of one process: shapes smaller than the ranks, mixed dtypes, uneven counts."""
    equal = []
    for count in range(1, 8):
        torch.manual_seed(count)
        parts = [
            [
                torch.randn(5, 3) * 10.0**i,
                torch.randn(()),
                torch.randn(1).bfloat16(),
                torch.randn(0, 4),
                torch.randn(17).double(),
            ]
            for i in range(count)
        ]
        found = world.sum(count, parts.__getitem__)
        expected = World().sum(count, parts.__getitem__)
        equal += [torch.equal(a, b) for a, b in zip(found, expected, strict=True)]
    dealt = world.deal(5, lambda i: i * i)
    try:
        world.gather(Path("model"))
    except TypeError as error:
        refused = str(error)
    return {
        "equal": equal,
        "dealt": dealt,
        "ranks": world.gather(world.rank),
        "refused": refused,
    }


def failures(where, world):
    """What each rank raises where one of them fails."""
    found = {}
    last = world.size - 1
    for name, error in {
        "merge": MergeError("its rows are not finite"),
        "memory": MemoryError("no more"),
        "other": ZeroDivisionError("by zero"),
    }.items():
        try:
            world.together(lambda error=error: fail_on(world, last, error))
        except Exception as raised:  # noqa: BLE001 - it is what is tested
            found[name] = [type(raised).__name__, str(raised), is_out_of_memory(raised)]
    try:
        world.lead(lambda: fail_on(world, 0, StoreError("the disk is full")))
    except Exception as raised:  # noqa: BLE001 - it is what is tested
        found["store"] = [type(raised).__name__, str(raised), False]
    return world.gather(found)


def fail_on(world, rank, error):
    """Raise on one rank."""
    if world.rank == rank:
        raise error


class FullOnTheLeader(Disk):
    """A disk that is full once a phase's adapter is written."""

    def make_folder(self, path):
        """Fail for one folder."""
        if path.name == ".tmp-adapter":
            raise OSError(28, "No space left on device")
        super().make_folder(path)


def full(where, world):
    """A full disk in the first commit: every rank raises, and a resumed run ends as one that never failed."""
    name = where / "full"
    try:
        run_pipeline("textmodel", out=name, overrides=SMALL, disk=FullOnTheLeader())
    except StoreError as error:
        raised = str(error)
    resume_run(name)
    run_pipeline("textmodel", out=where / "small", overrides=SMALL)
    return raised


def apart(where, world):
    """A rank that raises where no other does, while the others go on; and ranks that come apart."""
    found = []
    began = time.monotonic()
    for last_words in (True, False):
        with joined() as other:
            try:
                if last_words:
                    fail_on(other, 1, InputError("a file of its own is missing"))
                other.gather(1) if other.rank else other.any(flag=False)
            except Exception as raised:  # noqa: BLE001 - it is what is tested
                found.append([type(raised).__name__, str(raised)])
                other.leave(raised)
    return [*found, time.monotonic() - began]


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for part in sys.argv[2:]:
        work = globals()[part]
        if part in {"korean", "full", "apart"}:  # these join by themselves
            result, leader = work(directory, None), True
            with joined() as here:
                leader = here.leader
        else:
            with joined() as here:
                result, leader = work(directory, here), here.leader
        if leader:
            (directory / f"{part}.json").write_text(json.dumps(result))
