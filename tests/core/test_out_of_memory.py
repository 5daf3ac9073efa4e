"""Out of memory: recognised, said with what to lower, and a step that is made to fit."""

import pytest
import torch
from attrs import define, field

from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.context import StepOut
from mgk_core.contract.settings import TrainSettings
from mgk_core.record.checkpoint import Progress
from mgk_core.run.out_of_memory import FittingStep, OutOfMemory, told_of, what_was_asked

OUT = RuntimeError("CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has …")


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (OUT, "4.00 GiB"),
        (
            RuntimeError("DefaultCPUAllocator: … you tried to allocate 1048576 bytes."),
            "1.0 MiB",
        ),
        (MemoryError(), "no more memory"),
    ],
)
def test_how_much_was_asked_for_is_in_the_message(error, amount):
    """As far as the error says it, in binary units."""
    assert amount in what_was_asked(error)


@pytest.mark.parametrize(
    ("part", "hint"),
    [
        ("load", "smaller base"),
        ("evaluation", "evaluate.limit"),
        ("merge", "run.undo"),
        ("statistics", "calibration"),
        ("training", "train.micro_batch"),
    ],
)
def test_each_part_of_a_run_has_its_own_hint(part, hint):
    """What to lower depends on what did not fit; the phase is named where there is one."""
    assert hint in str(told_of(OUT, part, "mcq"))
    assert "mcq" in str(told_of(OUT, part, "mcq"))
    assert told_of(OUT, part, None).exit_code == 3


@define
class Rows:
    """A training set whose batches are their rows."""

    digest: str = ""

    def __len__(self):
        return 8

    def batch(self, rows):
        return list(rows)


@define
class Adapter:
    weight: torch.Tensor = field(factory=lambda: torch.zeros(2))

    def parameters(self):
        return [self.weight]


@define
class Phase:
    name: str = "one"
    train: TrainSettings = TrainSettings(batch_size=8)
    step: object = None


@define
class Ctx:
    """What a step needs of a context."""

    data: PhaseData = field(factory=lambda: PhaseData(train=Rows()))
    phase: Phase = field(factory=Phase)
    adapter: Adapter = field(factory=Adapter)
    optimizer: object = None
    device: torch.device = torch.device("cpu")

    def batch(self, rows):
        return self.data.train.batch(rows)

    def take_figures(self):
        return []


class Step:
    """Fits ``limit`` examples at once; draws a random number before it fails, as dropout would."""

    def __init__(self, limit, touch=None):
        self.limit, self.touch, self.seen, self.drawn = limit, touch, [], []

    def __call__(self, batches, number):
        self.drawn.append(float(torch.rand(1)))
        if max(map(len, batches)) > self.limit:
            if self.touch is not None:
                self.touch.add_(1)
            raise OUT
        self.seen.append(list(batches))
        return StepOut(0.0, None, None, len(batches), None, 0.1)


def fitting(limit, *, auto=True, touch=False):
    ctx, halvings = Ctx(), []
    step = Step(limit, ctx.adapter.weight if touch else None)
    return (
        FittingStep(ctx, step, Progress(), halvings.append, auto=auto),
        step,
        halvings,
    )


def test_a_step_is_halved_until_it_fits():
    """The same rows in smaller parts, from the same random numbers; the next step begins small."""
    run, step, halvings = fitting(2)
    run(range(8), 0)
    assert halvings == [4, 2]
    assert step.seen == [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    assert len(set(step.drawn)) == 1  # each attempt starts from the same random state
    run(range(8), 1)
    assert halvings == [4, 2]
    assert run.progress.micro_batch == 2


def test_an_odd_size_is_halved_upwards():
    """5 examples become 3 and 2, never less than half."""
    run, step, halvings = fitting(3)
    run.micro = 5
    run(range(5), 0)
    assert (halvings, step.seen) == ([3], [[[0, 1, 2], [3, 4]]])


def test_a_single_example_that_does_not_fit_is_an_error():
    """There is nothing left to halve; the message says so and the size is in the error's data."""
    run, _, halvings = fitting(0)
    with pytest.raises(OutOfMemory, match="a single example does not fit") as caught:
        run(range(8), 0)
    assert (halvings, caught.value.micro_batch) == ([4, 2, 1], 1)


def test_a_step_that_had_begun_to_update_is_not_tried_again():
    """Trying it again would apply a part of the update twice."""
    run, _, halvings = fitting(2, touch=True)
    with pytest.raises(OutOfMemory):
        run(range(8), 0)
    assert halvings == []


def test_without_auto_batch_the_error_says_how_to_turn_it_on():
    """And names the key that lowers the number of examples in memory."""
    run, _, halvings = fitting(2, auto=False)
    with pytest.raises(
        OutOfMemory, match=r"--auto-batch.*phases\.one\.train\.micro_batch"
    ):
        run(range(8), 0)
    assert halvings == []


def test_other_errors_are_left_alone():
    """Only out-of-memory is answered here."""
    run, step, _ = fitting(8)
    step.limit = -1

    def other(batches, number):
        raise RuntimeError("size mismatch")

    run.step = other
    with pytest.raises(RuntimeError, match="size mismatch"):
        run(range(8), 0)
