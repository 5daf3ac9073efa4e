"""Merging one weight, block of rows by block of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import define
from torch import Tensor

from mgk_merge.delta import DeltaOf
from mgk_merge.figures import Figures
from mgk_merge.undo import Keeper

_BLOCK = {"cpu": 1 << 15}  # numbers in work at once: half a dozen buffers of 128 KB stay in a core's cache
_BLOCK_ELSEWHERE = 1 << 24


def blocks(weight: Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) over the first dimension; ``rows`` 0: as many as suit the device."""
    count = weight.shape[0]
    if not rows:
        wanted = _BLOCK.get(weight.device.type, _BLOCK_ELSEWHERE)
        rows = max(1, wanted * count // max(1, weight.numel()))
    for start in range(0, count, rows):
        yield start, min(count, start + rows)


@define(eq=False)
class WeightMerge:
    """One weight in work: S = W + residual + Δ, W' = round(S), residual' = S − W'.

    weight: the live tensor. wide: dtype of the sum. before: the residual to add, or None.
    after: where the new residual goes (it may be ``before`` itself), or None.
    """

    name: str
    weight: Tensor
    wide: torch.dtype
    delta: DeltaOf
    before: Tensor | None
    after: Tensor | None
    keeper: Keeper
    figures: Figures

    def block(self, start: int, stop: int) -> None:
        """Merge rows ``start … stop``: compute, keep the old, exchange, check."""
        live = self.weight[start:stop]
        old = live.to(self.wide, copy=True, memory_format=torch.contiguous_format)
        change = torch.empty_like(old)
        self.delta(old, start, change)
        total = old + change
        held = None if self.before is None else self.before[start:stop].to(self.wide, copy=True)
        if held is not None:
            total += held
        self.keeper.keep(self.name, self.weight, start, stop)
        live.copy_(total)
        if self.weight.dtype == self.wide:
            new, error = total, None
        else:
            new = live.to(self.wide, copy=True, memory_format=torch.contiguous_format)
            error = total.sub_(new)
        self.figures.bounds(new, error)
        carried = self._carry(error, held, start, stop)
        self.figures.add(
            change.view(-1), old.view(-1), new.sub_(old).view(-1), None if carried is None else carried.view(-1)
        )

    def _carry(self, error: Tensor | None, held: Tensor | None, start: int, stop: int) -> Tensor | None:
        """Write a block of the new residual; return new less old residual, None where both are 0."""
        if self.after is None or error is None:
            return None if held is None else held.neg_()
        if self.after is self.before:
            self.keeper.keep(residual_key(self.name), self.after, start, stop)
        self.after[start:stop].copy_(error)
        new = self.after[start:stop].to(self.wide, copy=True)
        return new if held is None else new.sub_(held)


def residual_key(name: str) -> str:
    """Return the name under which a weight's residual is kept for undoing."""
    return f"{name}\0residual"
