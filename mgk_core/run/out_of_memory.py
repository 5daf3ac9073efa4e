"""Out of memory: telling it from other errors, saying what did not fit, and making a step fit."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import overload

import torch
from attrs import define, field, frozen
from torch import Tensor

from mgk_core.contract.bundle import Batch
from mgk_core.contract.context import PhaseContext, StepFn, StepOut
from mgk_core.contract.errors import EnvironmentFault
from mgk_core.model.device import is_out_of_memory
from mgk_core.record.checkpoint import Progress

_AMOUNT = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:[KMGT]i?B|bytes))")

_LOWER = {
    "load": "use a smaller base, or load it in bfloat16 or quantized",
    "evaluation": "lower the number of tokens that the base scores at once, or evaluate.limit",
    "merge": 'set run.undo = "disk", so that the old weights are kept on disk',
    "statistics": "keep a sketch of the statistics in place of whole matrices, or give less calibration data",
}


class OutOfMemory(EnvironmentFault):
    """Something did not fit. micro_batch: how many examples were in memory at once, where it was a step."""

    def __init__(self, message: str, micro_batch: int | None = None) -> None:
        self.micro_batch = micro_batch
        super().__init__(message)


def what_was_asked(error: BaseException) -> str:
    """Return the size of the failed allocation, if the error message contains it."""
    found = _AMOUNT.search(str(error))
    if found is None:
        return "the system has no more memory"
    amount = found[1]
    if amount.endswith("bytes"):
        amount = f"{int(amount.split()[0]) / 2**20:,.1f} MiB"
    return f"tried to allocate {amount}"


def told_of(error: BaseException, part: str, phase: str | None) -> OutOfMemory:
    """Build the error for a part of the run that did not fit in memory, with what to lower."""
    where = f"phase {phase!r}, {part}" if phase else part or "start"
    hint = _LOWER.get(part, "lower train.micro_batch or the length of the examples")
    return OutOfMemory(
        f"out of memory ({where}): {what_was_asked(error)}; {hint}, then continue with 'mgk resume'"
    )


@frozen(eq=False)
class MicroBatches(Sequence[Batch]):
    """The micro-batches of a step, each made when it is asked for: a rank computes a part of them."""

    batch: Callable[[Sequence[int]], Batch]
    rows: Sequence[int]
    micro: int

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return len(range(0, len(self.rows), self.micro))

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...

    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        """Make one micro-batch, or some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = range(0, len(self.rows), self.micro)[index]
        return self.batch(self.rows[start : start + self.micro])


@define(eq=False)
class FittingStep:
    """One optimizer step over rows of the training set, in micro-batches.

    auto: a step that does not fit is retried in micro-batches of half the size: the same examples,
    the same divisor, so the same step up to rounding. halved: called on each halving, with the state
    from before the step. micro: examples in memory at once.
    """

    ctx: PhaseContext
    step: StepFn
    progress: Progress
    halved: Callable[[int], None]
    auto: bool = False
    micro: int = field(init=False)
    _before: tuple[Tensor, list[Tensor], int] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.micro = self.progress.micro_batch or self.ctx.phase.train.micro

    def __call__(self, rows: Sequence[int], number: int) -> StepOut:
        """Perform step ``number`` (0-based) on these rows.

        :raises OutOfMemory: it does not fit
        """
        while self.auto:
            self._before = self._state()
            try:
                return self.once(rows, number)
            except OutOfMemory as error:
                if self.micro == 1 or self._touched():
                    raise
                error.__cause__ = (
                    None  # its traceback holds the tensors of the step that did not fit
                )
            self._halve()
        return self.once(rows, number)

    def once(self, rows: Sequence[int], number: int) -> StepOut:
        """Perform a step without trying it in smaller parts."""
        batch, micro = self.ctx.batch, self.micro
        self.ctx.take_figures()  # of an attempt that did not fit
        try:
            if len(rows) <= micro:
                out = self.step([batch(rows)], number)
            else:
                out = self.step(MicroBatches(batch, rows, micro), number)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise self._fault(error, number, min(micro, len(rows))) from error
            raise
        return out

    def _fault(self, error: Exception, number: int, examples: int) -> OutOfMemory:
        name, size = self.ctx.phase.name, self.ctx.phase.train.batch_size
        key = f"phases.{name}.train.micro_batch"
        if self.micro == 1:
            mend = "a single example does not fit: shorten the examples, lower the adapter's rank, or use a smaller base"
        else:
            mend = (
                "continue with 'mgk resume RUN --auto-batch', which halves that number by itself (the effective batch stays"
                f" {size}); or lower {key} in run.toml (now {self.micro}) and continue with 'mgk resume RUN --accept-change"
                f" config.{key}'"
            )
        return OutOfMemory(
            f"out of memory in step {number + 1} of phase {name!r}, with {examples} examples in memory at once:"
            f" {what_was_asked(error)}; {mend}",
            self.micro,
        )

    def _state(self) -> tuple[Tensor, list[Tensor], int]:
        """Return what a failed attempt must not have moved: random numbers, and versions of all state."""
        cuda = (
            [torch.cuda.get_rng_state(self.ctx.device)]
            if self.ctx.device.type == "cuda"
            else []
        )
        return torch.get_rng_state(), cuda, self._versions()

    def _versions(self) -> int:
        """Add up how often the parameters and the optimizer's tensors were written to."""
        assert self.ctx.adapter is not None  # noqa: S101 - attached before
        state = (
            self.ctx.optimizer.state.values() if self.ctx.optimizer is not None else ()
        )
        tensors = [
            *self.ctx.adapter.parameters(),
            *(v for kept in state for v in kept.values()),
        ]
        return sum(t._version for t in tensors if isinstance(t, Tensor))  # noqa: SLF001 - autograd's own counter

    def _touched(self) -> bool:
        """Whether the failed attempt had begun to update, so that it cannot simply be done again."""
        return self._before is not None and self._versions() != self._before[2]

    def _halve(self) -> None:
        assert self._before is not None  # noqa: S101 - set before the step
        torch.set_rng_state(self._before[0])
        for state in self._before[1]:
            torch.cuda.set_rng_state(state, self.ctx.device)
        self.micro = self.progress.micro_batch = (self.micro + 1) // 2
        gc.collect()
        if self.ctx.device.type == "cuda":
            torch.cuda.empty_cache()
        self.halved(self.micro)
