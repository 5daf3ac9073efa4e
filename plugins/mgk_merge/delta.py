"""Where a weight's delta comes from: the adapter's factors, or `merged_weight` less the weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import evolve
from torch import Tensor

from mgk_core.contract.adapter import Adapter, Additive, Factors, LowRank, Target
from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import FactorTransform, Proposal, Transform
from mgk_core.model.lowrank import as_matrix, folded, stored_delta

DeltaOf = Callable[[Tensor, int, Tensor], None]
"""(weight rows (n, …) fp32, index of the first row, out like them): write the delta's rows to out."""


def delta_of(
    adapter: Adapter, name: str, target: Target, proposal: Proposal, dtype: torch.dtype
) -> tuple[DeltaOf, bool]:
    """Return (how to get rows of the delta to merge, whether all rows have to be asked for at once).

    The proposal's transforms and scale are applied. Transforms that act on the inputs only are
    applied to the factors, so that no dense delta is needed.
    """
    factors = adapter.factors(name) if isinstance(adapter, LowRank) else None
    # A bias has no inputs that a transform could act on.
    transforms = proposal.transforms if target.parameter.dim() > 1 else ()
    if factors is not None and all(isinstance(t, FactorTransform) for t in transforms):
        return _from_factors(
            _through(factors, name, transforms), target, proposal.scale, dtype
        ), False
    if factors is not None:
        source = _from_factors(factors, target, 1.0, dtype)
        whole = False
    elif isinstance(adapter, Additive) and adapter.delta(name, slice(0, 0)) is not None:
        source, whole = _from_delta(adapter, name), False
    else:
        source = _from_merged(adapter, name)
        whole = not adapter.row_separable
    whole = whole or any(getattr(t, "whole", False) for t in transforms)
    whole = whole or (bool(transforms) and folded(target))
    return _transformed(source, name, target, transforms, proposal.scale), whole


def _through(factors: Factors, name: str, transforms: Sequence[Transform]) -> Factors:
    a, a0 = factors.a.detach(), None if factors.a0 is None else factors.a0.detach()
    for transform in transforms:
        assert isinstance(transform, FactorTransform)  # noqa: S101 - the caller checked
        a, a0 = (
            transform.right(name, a),
            None if a0 is None else transform.right(name, a0),
        )
    return Factors(a, factors.b, factors.scale, a0, factors.b0)


def _from_factors(
    factors: Factors, target: Target, scale: float, dtype: torch.dtype
) -> DeltaOf:
    scaled = evolve(factors, scale=factors.scale * scale)
    stored = stored_delta(scaled, transposed=target.transposed, dtype=dtype)
    shape = target.parameter.shape
    if stored.rows * stored.right.shape[-1] != target.parameter.numel():
        raise MergeError(
            f"{target.weight}: the adapter's factors make {stored.rows} × {stored.right.shape[-1]} numbers,"
            f" the weight has {tuple(shape)}"
        )
    per_row = stored.rows // shape[0]

    def rows(weight: Tensor, start: int, out: Tensor) -> None:
        del weight
        stored.write_(out.view(-1, stored.right.shape[-1]), start * per_row)

    return rows


def _from_delta(adapter: Additive, name: str) -> DeltaOf:
    def rows(weight: Tensor, start: int, out: Tensor) -> None:
        delta = adapter.delta(name, slice(start, start + weight.shape[0]))
        if delta is None or delta.shape != weight.shape:
            shape = None if delta is None else tuple(delta.shape)
            raise MergeError(
                f"{name}: delta returned shape {shape}, expected {tuple(weight.shape)}"
            )
        out.copy_(delta)

    return rows


def _from_merged(adapter: Adapter, name: str) -> DeltaOf:
    def rows(weight: Tensor, start: int, out: Tensor) -> None:
        out.copy_(weight)  # the adapter gets a copy: what it does to it harms nobody
        block = slice(start, start + weight.shape[0])
        merged = adapter.merged_weight(
            name, out, block if adapter.row_separable else None
        )
        if merged.shape != weight.shape:
            raise MergeError(
                f"{name}: merged_weight returned shape {tuple(merged.shape)}, expected {tuple(weight.shape)}"
                f" (adapter {adapter.name!r})"
            )
        torch.sub(merged.to(weight.dtype), weight, out=out)

    return rows


def _transformed(
    source: DeltaOf,
    name: str,
    target: Target,
    transforms: Sequence[Transform],
    scale: float,
) -> DeltaOf:
    turned = folded(target)

    def rows(weight: Tensor, start: int, out: Tensor) -> None:
        source(weight, start, out)
        for transform in transforms:
            matrix = as_matrix(out, target)
            block = None if turned else slice(start, start + out.shape[0])
            changed = transform.delta(name, matrix.clone(), block)
            if changed.shape != matrix.shape:
                raise MergeError(
                    f"{name}: transform {transform.name!r} changed the delta's shape to {tuple(changed.shape)}"
                )
            if not torch.isfinite(changed).all() and torch.isfinite(matrix).all():
                raise MergeError(
                    f"{name}: transform {transform.name!r} made NaN or inf of a delta"
                )
            matrix.copy_(changed)
        if scale != 1.0:
            out.mul_(scale)

    return rows
