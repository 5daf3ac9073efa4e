"""An adapter's deltas in the orientation of the mathematics: (out, in), factors (r, in) and (out, r)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, LowRank, Target
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import effective_weights, parts_of


@frozen(eq=False)
class Pair:
    """Live factors of one weight: ΔW = scale · b @ a. a: (r, in)   b: (out, r); gradients go through."""

    a: Tensor
    b: Tensor
    scale: float


def matrices(adapter: Adapter) -> dict[str, Target]:
    """Return the adapter's targets that are matrices (a convolution: over its unfolded windows).

    Biases, stacks of experts and grouped convolutions have no one input and output to keep in place.
    """
    return {
        n: t
        for n, t in adapter.targets().items()
        if t.parameter.dim() == 2 or _one_convolution(t)
    }


def _one_convolution(target: Target) -> bool:
    return (
        isinstance(target.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and target.module.groups == 1
    )


def oriented(target: Target, weight: Tensor) -> Tensor:
    """Return a stored weight or delta as (out, in)."""
    return weight.mT if target.transposed else weight.flatten(1)


def base_weight(target: Target) -> Tensor:
    """Return the base's weight, fp32, (out, in), without a gradient.

    :raises InputError: its numbers are packed, so that what it computes cannot be read off
    """
    if not target.parameter.is_floating_point():
        raise InputError(
            f"{target.weight}: its numbers are packed ({target.parameter.dtype}), and a retention method has to read them;"
            " expected a plain base: load it with base.quantize = 'none', or set the method to false for this phase"
        )
    return oriented(target, target.parameter.detach().float())


def pair_of(adapter: Adapter, name: str) -> Pair | None:
    """Return a target's factors; None where the adapter has none there. Initial ones are subtracted."""
    factors = adapter.factors(name) if isinstance(adapter, LowRank) else None
    if (
        factors is None
        or factors.a.dim() not in (2, 3)
        or (factors.a.dim() == 3 and len(factors.a) > 1)
    ):
        return None
    a, b, a0, b0 = (
        t if t is None or t.dim() == 2 else t[0]
        for t in (factors.a, factors.b, factors.a0, factors.b0)
    )
    assert a is not None and b is not None  # noqa: S101, PT018 - only the initial ones may be missing
    if a0 is None or b0 is None:
        return Pair(a, b, factors.scale)
    # BA − B₀A₀ = [B, −B₀] [A; A₀]
    return Pair(torch.cat([a, a0]), torch.cat([b, -b0], dim=1), factors.scale)


def live_pairs(adapter: Adapter) -> Callable[[str], Pair]:
    """Return weight → its factors, for loss terms. Asked for once where they are parameters, which
    stay the same objects; asked for each time where an adapter computes them."""
    found = {n: pair_of(adapter, n) for n in matrices(adapter)}
    fixed = {
        n: p for n, p in found.items() if p is not None and p.a.is_leaf and p.b.is_leaf
    }

    def pair(name: str) -> Pair:
        made = fixed.get(name) or pair_of(adapter, name)
        assert made is not None  # noqa: S101 - only asked for weights that have factors
        return made

    return pair


def dense_delta(adapter: Adapter, name: str, target: Target) -> Tensor:
    """Return ΔW, (out, in), with gradients: what the target's weight becomes, less what it is.

    Asks `merged_weight` and, where that cuts gradients, the parts on the module.
    """
    stored = target.parameter.detach().float()
    merged = adapter.merged_weight(name, stored)
    if torch.is_grad_enabled() and not merged.requires_grad:
        changed = effective_weights(
            target.module, [p for p in parts_of(target.module) if p.enabled]
        )
        merged = changed.get(target.attribute, merged)
    if torch.is_grad_enabled() and not merged.requires_grad:
        raise InputError(
            f"adapter {adapter.name!r}: its delta on {name} has neither factors nor gradients, so no loss term can"
            " hold it back; use a method that acts at the transition (covariance-merge) or on examples (replay)"
        )
    return oriented(target, merged.float() - stored)
