"""Merging one weight, block of rows by block of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import define, field
from torch import Tensor

from mgk_merge.delta import DeltaOf
from mgk_merge.figures import Figures
from mgk_merge.undo import Keeper

_BLOCK = {"cpu": 1 << 18}  # numbers in work at once: four buffers of 1 MB
_BLOCK_ELSEWHERE = 1 << 24


def blocks(weight: Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) over the first dimension; ``rows`` 0: as many as suit the device."""
    count = weight.shape[0] if weight.numel() else 0
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
    _rooms: dict[int, tuple[Tensor, ...]] = field(init=False, factory=dict)

    def block(self, start: int, stop: int) -> None:
        """Merge rows ``start … stop``: keep the old, compute, exchange, check."""
        live = self.weight[start:stop]
        old, change, total, new = self._buffers(live)
        kept = self.keeper.keep(self.name, self.weight, start, stop)
        rounds = live.dtype != self.wide
        if kept is None or rounds:
            old.copy_(live)
        else:
            old = kept
        self.delta(old, start, change)
        held = self._held(start, stop)
        if held is None and not rounds:
            torch.add(old, change, out=live)
        else:
            torch.add(old, change, out=total)
            live.copy_(total if held is None else total.add_(held))
        carried = None if held is None else -held
        if rounds:
            new.copy_(live)
            error, carried = self._drop(total, new, held, start, stop)
            self.figures.rounded(live, error)
        visible = torch.sub(new if rounds else live, old, out=new)
        self.figures.add(change, old, visible, carried)

    def _buffers(self, live: Tensor) -> tuple[Tensor, ...]:
        """Return four scratch tensors of the block's shape, the same memory for every block."""
        rows = live.shape[0]
        if rows not in self._rooms:
            first = next(
                iter(self._rooms.values()), None
            )  # only the last block is smaller
            fresh = (
                torch.empty(
                    (4, *live.shape), dtype=self.wide, device=live.device
                ).unbind()
                if first is None
                else first
            )
            self._rooms[rows] = tuple(t[:rows] for t in fresh)
        return self._rooms[rows]

    def _held(self, start: int, stop: int) -> Tensor | None:
        """Return rows of the old residual, kept where the new one will overwrite them."""
        if self.before is None:
            return None
        if self.after is not self.before:
            return self.before[start:stop].to(self.wide)
        kept = self.keeper.keep(residual_key(self.name), self.before, start, stop)
        return (
            self.before[start:stop].to(self.wide, copy=True)
            if kept is None
            else kept.to(self.wide)
        )

    def _drop(
        self, total: Tensor, new: Tensor, held: Tensor | None, start: int, stop: int
    ) -> tuple[Tensor, Tensor | None]:
        """Write rows of the new residual; return S − W', and new less old residual (None where both are 0)."""
        if self.after is None:
            return total.sub_(new), None if held is None else -held
        rows = self.after[start:stop]
        if rows.dtype == self.wide:
            error = torch.sub(total, new, out=rows)
            return error, error if held is None else torch.sub(error, held, out=total)
        error = total.sub_(new)
        rows.copy_(error)
        kept = rows.to(self.wide)
        return error, kept if held is None else kept.sub_(held)


def residual_key(name: str) -> str:
    """Return the name under which a weight's residual is kept for undoing."""
    return f"{name}\0residual"
