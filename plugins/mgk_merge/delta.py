"""A weight's delta: from the adapter's factors, or as `merged_weight` less the weight.

The proposal's transforms and scale are part of it. Transforms that act on the inputs only are
applied to the factors, so that no dense delta is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from attrs import define, evolve, field
from torch import Tensor

from mgk_core.adapter import Adapter, Factors, LowRank, Target
from mgk_core.errors import MergeError
from mgk_core.lowrank import StoredDelta, as_matrix, folded, stored_delta
from mgk_core.outcome import FactorTransform, Proposal, Transform


class Delta(Protocol):
    """Rows of Δ in stored orientation. ``block``: contiguous rows (n, …) from row ``start`` on."""

    whole: bool
    """Whether all rows have to be asked for at once."""

    def prepare(self, block: Tensor, start: int) -> float:
        """Get ready for a block of the weight, and return ‖Δ‖² over it."""

    def add_to(self, block: Tensor, start: int) -> None:
        """Add Δ to the prepared block in place."""

    def inner(self, block: Tensor, start: int) -> float:
        """Return ⟨block, Δ⟩ over the prepared block, in the block's dtype."""


def delta_of(adapter: Adapter, name: str, target: Target, proposal: Proposal, dtype: torch.dtype) -> Delta:
    """Return the delta of one weight, after the proposal's transforms and scale."""
    factors = adapter.factors(name) if isinstance(adapter, LowRank) else None
    # A bias has no inputs that a transform could act on.
    transforms = proposal.transforms if target.parameter.dim() > 1 else ()
    if factors is not None and all(isinstance(t, FactorTransform) for t in transforms):
        changed = _through(factors, name, transforms)
        return _low_rank(evolve(changed, scale=changed.scale * proposal.scale), target, dtype)
    rows = _merged_rows(adapter, name) if factors is None else _factor_rows(_low_rank(factors, target, dtype))
    whole = (factors is None and not adapter.row_separable) or (bool(transforms) and folded(target))
    return DenseDelta(_transformed(rows, name, target, transforms, proposal.scale), whole)


@define(eq=False)
class LowRankDelta:
    """scale · left @ right, never made dense as a whole."""

    stored: StoredDelta
    per_row: int  # flat rows to one row of the weight's first dimension
    whole: bool = False
    _gram: Tensor = field(init=False)  # RRᵀ, (blocks, k, k)

    def __attrs_post_init__(self) -> None:
        wide = self.stored.right.double()
        self._gram = wide @ wide.mT

    def prepare(self, block: Tensor, start: int) -> float:
        """‖Δ‖² = scale² · tr(L (RRᵀ) Lᵀ), in float64."""
        total = 0.0
        for _, which, rows in self._pieces(block, start):
            left = self.stored.left[which, rows].double()
            total += float(torch.dot((left @ self._gram[which]).view(-1), left.reshape(-1)))
        return total * self.stored.scale**2

    def add_to(self, block: Tensor, start: int) -> None:
        """Add Δ to the block in place."""
        self.stored.add_(self._flat(block), start * self.per_row)

    def inner(self, block: Tensor, start: int) -> float:
        """⟨block, L R⟩ = ⟨Lᵀ block, R⟩: one product, narrow on the side that BLAS likes."""
        total = 0.0
        for piece, which, rows in self._pieces(block, start):
            narrow = self.stored.left[which, rows].to(piece.dtype).T @ piece  # (k, cols)
            total += float((narrow * self.stored.right[which].to(piece.dtype)).sum(dtype=torch.float64))
        return total * self.stored.scale

    def _flat(self, block: Tensor) -> Tensor:
        return block.view(-1, self.stored.right.shape[-1])

    def _pieces(self, block: Tensor, start: int) -> list[tuple[Tensor, int, slice]]:
        return self.stored.pieces(self._flat(block), start * self.per_row)


@define(eq=False)
class DenseDelta:
    """A delta that has to be made, block by block. rows: (weight block, first row) → its delta."""

    rows: Callable[[Tensor, int], Tensor]
    whole: bool
    _block: Tensor | None = None

    def prepare(self, block: Tensor, start: int) -> float:
        """Make the block's delta and keep it."""
        self._block = self.rows(block, start)
        return _dot(self._block, self._block)

    def add_to(self, block: Tensor, start: int) -> None:
        """Add Δ to the block in place."""
        assert self._block is not None  # noqa: S101 - prepare comes first
        block.add_(self._block)

    def inner(self, block: Tensor, start: int) -> float:
        """Return ⟨block, Δ⟩."""
        assert self._block is not None  # noqa: S101 - prepare comes first
        return _dot(block, self._block.to(block.dtype))


def _low_rank(factors: Factors, target: Target, dtype: torch.dtype) -> LowRankDelta:
    stored = stored_delta(factors, transposed=target.transposed, dtype=dtype)
    shape = tuple(target.parameter.shape)
    if stored.rows * stored.right.shape[-1] != target.parameter.numel():
        raise MergeError(
            f"{target.weight}: the adapter's factors make {stored.rows} × {stored.right.shape[-1]} numbers,"
            f" the weight has {shape}"
        )
    return LowRankDelta(stored, stored.rows // shape[0])


def _through(factors: Factors, name: str, transforms: Sequence[Transform]) -> Factors:
    a, a0 = factors.a.detach(), None if factors.a0 is None else factors.a0.detach()
    for transform in transforms:
        assert isinstance(transform, FactorTransform)  # noqa: S101 - the caller checked
        a, a0 = transform.right(name, a), None if a0 is None else transform.right(name, a0)
    return Factors(a, factors.b, factors.scale, a0, factors.b0)


def _factor_rows(delta: LowRankDelta) -> Callable[[Tensor, int], Tensor]:
    def rows(weight: Tensor, start: int) -> Tensor:
        made = torch.zeros_like(weight)
        delta.add_to(made, start)
        return made

    return rows


def _merged_rows(adapter: Adapter, name: str) -> Callable[[Tensor, int], Tensor]:
    def rows(weight: Tensor, start: int) -> Tensor:
        block = slice(start, start + weight.shape[0]) if adapter.row_separable else None
        # The adapter gets a copy: what it does to it harms nobody.
        merged = adapter.merged_weight(name, weight.clone(), block)
        if merged.shape != weight.shape:
            raise MergeError(
                f"{name}: merged_weight returned shape {tuple(merged.shape)}, expected {tuple(weight.shape)}"
                f" (adapter {adapter.name!r})"
            )
        return torch.sub(merged.to(weight.dtype), weight)

    return rows


def _transformed(
    source: Callable[[Tensor, int], Tensor], name: str, target: Target, transforms: Sequence[Transform], scale: float
) -> Callable[[Tensor, int], Tensor]:
    turned = folded(target)

    def rows(weight: Tensor, start: int) -> Tensor:
        delta = source(weight, start)
        for transform in transforms:
            matrix = as_matrix(delta, target)
            block = None if turned else slice(start, start + delta.shape[0])
            changed = transform.delta(name, matrix.clone(), block)
            if changed.shape != matrix.shape:
                raise MergeError(
                    f"{name}: transform {transform.name!r} changed the delta's shape to {tuple(changed.shape)}"
                )
            matrix.copy_(changed)
        return delta.mul_(scale) if scale != 1.0 else delta

    return rows


def _dot(one: Tensor, other: Tensor) -> float:
    """Return ⟨one, other⟩; again in float64 where fp32's range would not do."""
    found = float(torch.dot(one.reshape(-1), other.reshape(-1)))
    if 1e-30 < abs(found) < 1e30:
        return found
    return float(torch.dot(one.reshape(-1).double(), other.reshape(-1).double()))
