"""Merging one weight, block of rows by block of rows.

A block is small enough for its buffers to stay in a CPU's cache, so that a weight is read from
memory once and written once; the buffers are made once per merge.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import define, field
from torch import Tensor

from mgk_merge.delta import Delta
from mgk_merge.figures import Figures, squared_norm
from mgk_merge.undo import Keeper

_BLOCK = {"cpu": 1 << 17}  # numbers in work at once: two buffers of 512 KB
_BLOCK_ELSEWHERE = 1 << 24
_FINE = 2.0**-28
"""‖Δ‖²/‖W‖² below which the fp32 sum's own rounding is measured, not only bounded.

It takes at most 2⁻²⁴ ‖W‖/‖Δ‖ of the delta: a thousandth where ‖Δ‖ = 2⁻¹⁴ ‖W‖.
"""


def blocks(weight: Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) over the first dimension; ``rows`` 0: as many as suit the device."""
    count = weight.shape[0]
    if not rows:
        wanted = _BLOCK.get(weight.device.type, _BLOCK_ELSEWHERE)
        rows = max(1, wanted * count // max(1, weight.numel()))
    for start in range(0, count, rows):
        yield start, min(count, start + rows)


@define(eq=False)
class Buffers:
    """Two scratch tensors that one merge uses over and over."""

    _held: dict[tuple[torch.dtype, torch.device], Tensor] = field(factory=dict)

    def like(self, block: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return two contiguous tensors of the block's shape; what they hold is undefined."""
        key, size = (dtype, block.device), block.numel()
        held = self._held.get(key)
        if held is None or held.shape[1] < size:
            held = self._held[key] = torch.empty(2, size, dtype=dtype, device=block.device)
        return held[0, :size].view(block.shape), held[1, :size].view(block.shape)


@define(eq=False)
class WeightMerge:
    """One weight in work: S = W + residual + Δ, W' = round(S), residual' = S − W'.

    weight: the live tensor. wide: dtype of the sum. before: the residual to add, or None.
    after: where the new residual goes (it may be ``before`` itself), or None.
    """

    name: str
    weight: Tensor
    wide: torch.dtype
    delta: Delta
    before: Tensor | None
    after: Tensor | None
    keeper: Keeper
    figures: Figures
    buffers: Buffers

    def block(self, start: int, stop: int) -> None:
        """Merge rows ``start … stop``: keep the old, compute, exchange, check, measure."""
        live = self.weight[start:stop]
        held = None if self.before is None else self.before[start:stop].to(self.wide, copy=True)
        direct = live.dtype == self.wide and held is None and live.is_contiguous()
        total, new = (live, live) if direct else self.buffers.like(live, self.wide)
        if not direct:
            total.copy_(live)
        delta, weight = self.delta.prepare(total, start), squared_norm(total)
        old = total.clone() if delta <= _FINE * weight else None
        was = None if self.figures.moved or direct else live.clone()
        self.keeper.keep(self.name, self.weight, start, stop)
        self.delta.add_to(total, start)
        if not direct:
            if held is not None:
                total += held
            live.copy_(total)
            new.copy_(live)
        self.figures.check(live, total, delta, weight)
        if direct:
            kept, whole = self._direct(delta, old, live, start)
        else:
            kept, whole = self._rounded(delta, old, (total, new, held), start, stop)
        self.figures.add(delta, weight, kept, whole)
        if was is not None:
            self.figures.moved = kept > 0.01 * delta or not torch.equal(was, live)

    def _direct(self, delta: float, old: Tensor | None, new: Tensor, start: int) -> tuple[float, float]:
        """Return ⟨W' − W, Δ⟩ twice: nothing was rounded but the sum itself."""
        if old is None:
            self.figures.moved = True
            return delta, delta
        visible = new.double().sub_(old)
        self.figures.moved = self.figures.moved or bool(visible.any())
        kept = self.delta.inner(visible, start)
        return kept, kept

    def _rounded(
        self, delta: float, old: Tensor | None, parts: tuple[Tensor, Tensor, Tensor | None], start: int, stop: int
    ) -> tuple[float, float]:
        """Keep the error as residual; return ⟨W' − W, Δ⟩, and the same with the residual counted in.

        parts: S, W' in fp32, old residual. W' − W = Δ − (error − old residual).
        """
        total, new, held = parts
        visible = None if old is None else new.double().sub_(old)
        error, kept_error = self._keep(total, new, start, stop)
        self.figures.dropped(error)
        if visible is not None:
            seen = self.delta.inner(visible, start)
            gained = (0 if kept_error is None else kept_error.double()) - (0 if held is None else held.double())
            return seen, seen + (self.delta.inner(gained, start) if isinstance(gained, Tensor) else 0.0)
        carried = error if held is None else error - held
        seen = delta - self.delta.inner(carried, start)
        if kept_error is None:
            return seen, seen if held is None else delta - self.delta.inner(error, start)
        exact = kept_error.dtype == error.dtype
        return seen, delta if exact else delta - self.delta.inner(error - kept_error, start)

    def _keep(self, total: Tensor, new: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Return S − W', and the block of the residual that now holds it; None where none is kept."""
        if self.after is None:
            return total.sub_(new), None
        if self.after is self.before:
            self.keeper.keep(residual_key(self.name), self.after, start, stop)
        block = self.after[start:stop]
        if block.dtype == self.wide:
            torch.sub(total, new, out=block)
            return block, block
        block.copy_(total.sub_(new))
        return total, block


def residual_key(name: str) -> str:
    """Return the name under which a weight's residual is kept for undoing."""
    return f"{name}\0residual"
