"""What each rank of a test does; started by torchrun's agent: ``python worker.py DIRECTORY PART …``.

The leader writes what was found to ``DIRECTORY/PART.json``.
"""

import json
import sys
import time
from pathlib import Path

import torch
from reductions import measured

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError, MergeError, MgkError, StoreError
from mgk_core.contract.world import World, place
from mgk_core.model.device import is_out_of_memory
from mgk_core.model.digest import tensors_digest
from mgk_core.record.disk import Disk
from mgk_core.run import ranks
from mgk_core.run.join import joined
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.run.transition import Transition

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
    """What the runs were given, for a process that does the same alone."""
    return {"tiny": TINY, "small": SMALL}


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
    return raised


def wrong(where, world):
    """One rank whose merge goes wrong: all refuse, and each has its base back, bit for bit."""
    return {
        fault.__name__: refused(where / fault.__name__, fault)
        for fault in (not_a_number, merged_wrong)
    }


def not_a_number(transition, merge):
    """A NaN in the adapter, as a defective device leaves it."""
    with torch.no_grad():
        transition.adapter.parameters()[0].view(-1)[0] = float("nan")
    return merge(transition)


def merged_wrong(transition, merge):
    """The first row of each merged weight is 1 % off."""
    report = merge(transition)
    with torch.no_grad():
        for target in transition.adapter.targets().values():
            target.parameter[0] *= 1.01
    return report


def refused(run, fault):
    """Run with a fault on the last rank; return per rank the error and whether the base is the old one."""
    seen, merge = [], Transition._merge

    def merged(transition):
        model = transition.session.bundle.model
        seen.append((model, tensors_digest(base_state_dict(model))))
        here = place()
        return (
            fault(transition, merge)
            if here.rank == here.size - 1
            else merge(transition)
        )

    Transition._merge = merged
    try:
        run_pipeline("textmodel", out=run, overrides=SMALL)
    except MgkError as error:
        raised = [type(error).__name__, str(error)]
    finally:
        Transition._merge = merge
    model, before = seen[-1]
    restored = tensors_digest(base_state_dict(model)) == before
    with joined() as other:
        found = other.gather([*raised, restored, len(seen)])
    resume_run(run)
    return found


def traffic(where, world):
    """Bytes that this rank receives from others in gradients' sums: of a whole run, by operation."""
    received = []
    scatter, gather = ranks.dist.all_to_all_single, ranks.dist.all_gather

    def scattered(out, given):
        received.append(
            out.numel() * out.element_size() * (world_size - 1) // world_size
        )
        return scatter(out, given)

    def gathered(out, given, group=None):
        if group is None:
            received.append(given.numel() * given.element_size() * (world_size - 1))
        return gather(out, given, group=group)

    world_size = place().size
    ranks.dist.all_to_all_single, ranks.dist.all_gather = scattered, gathered
    try:
        run_pipeline("textmodel", out=where / "small", overrides=SMALL)
    finally:
        ranks.dist.all_to_all_single, ranks.dist.all_gather = scatter, gather
    return sum(received)


def reductions(where, world):
    """Deltas after steps whose gradients were added up in three ways, against one process."""
    return measured(world)


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
        if part in {
            "korean",
            "full",
            "apart",
            "traffic",
            "wrong",
        }:  # these join by themselves
            result, leader = work(directory, None), True
            with joined() as here:
                leader = here.leader
        else:
            with joined() as here:
                result, leader = work(directory, here), here.leader
        if leader:
            (directory / f"{part}.json").write_text(json.dumps(result))
