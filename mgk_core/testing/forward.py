"""Conformance tests of adapters: forward pass, `Part.weights`, factors and `merged_weight` agree.

What the model computes while the adapter is attached is compared with what the merged weights
compute in float64, at every dtype of the base. The delta is made as large as the weight, so that an
error of its scale cannot hide in the rounding of a narrow dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, Additive, LowRank, Target
from mgk_core.model.inject import effective_weights, is_adapted, parts_of
from mgk_core.model.lowrank import stored_delta
from mgk_core.testing.history import shake
from mgk_core.testing.laws import NotApplicable, law, require
from mgk_core.testing.subject import (
    Subject,
    distance,
    inner_dimension,
    output,
    plain_output,
    unit_roundoff,
)
from mgk_core.testing.zoo import Case

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAKEN = 0.5


@law("forward pass equals merged_weight")
def forward(subject: Subject) -> None:
    """At every dtype, a model with the adapter attached computes what its `merged_weight` gives."""
    for dtype in DTYPES:
        case = subject.make()
        case.model.to(dtype)
        if not _runs(case):
            continue  # torch has no such layer in this dtype on this device
        adapter = subject.on(case)
        shake(adapter, size=SHAKEN)
        attached = output(case)
        reference = _in_float64(subject.make(), case, adapter)
        unit = max(torch.finfo(dtype).eps / 2, unit_roundoff(adapter))
        longest = max(inner_dimension(t.parameter) for t in adapter.targets().values())
        # each of at most four layers rounds its inputs, weights, sum and output
        bound = 32 * unit * (longest**0.5 if unit < 1e-4 else 1.0)
        error = distance(attached, reference)
        require(
            error <= bound,
            f"{dtype}: the forward pass differs from merged_weight's by {error:.3g}"
            f" (relative 2-norm); at most {bound:.3g}",
        )


def _runs(case: Case) -> bool:
    try:
        output(case)
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def _in_float64(fresh: Case, case: Case, adapter: Adapter) -> Tensor:
    """Return what the merged weights compute in float64. fresh: the bare model, built once more."""
    merged = {}
    for name, target in adapter.targets().items():
        weight = target.parameter.detach()
        wide = weight if weight.dtype == torch.float64 else weight.float()
        merged[name] = adapter.merged_weight(name, wide.clone()).double()
    dtype = next(case.model.parameters()).dtype
    model = fresh.model.to(
        dtype
    ).double()  # the rounded weights, and below the rounded inputs
    inputs = case.inputs()
    return plain_output(Case(case.kind, model, lambda *_: inputs), merged)


@law("weights and factors equal merged_weight")
def formulas(subject: Subject) -> None:
    """What later adapters and retention methods read (`Part.weights`, `factors`, `delta`) is what is merged."""
    _, adapter = subject.trained(dtype=torch.float64)
    asked = 0
    for name, target in adapter.targets().items():
        weight = target.parameter.detach().clone()
        merged = adapter.merged_weight(name, weight.clone())
        size = max(float(weight.abs().max()), float(merged.abs().max()))
        bound = 4 * (inner_dimension(weight) + 4) * unit_roundoff(adapter) * size
        found = {
            "weights": _by_weights(target),
            "factors": _by_factors(adapter, name, target),
            "delta": _by_delta(adapter, name, target),
        }
        for how, value in found.items():
            if value is None:
                continue
            asked += 1
            error = float((value - merged).abs().max())
            require(
                error <= bound,
                f"{name}: {how} differs from merged_weight by {error:.3g}; at most {bound:.3g}",
            )
    if not asked:
        raise NotApplicable("it has neither parts (mgk_core.model.inject) nor factors")


@torch.no_grad()
def _by_weights(target: Target) -> Tensor | None:
    module: nn.Module = target.module
    if not is_adapted(module):
        return None
    return effective_weights(module, parts_of(module)).get(target.attribute)


def _by_factors(adapter: object, name: str, target: Target) -> Tensor | None:
    factors = adapter.factors(name) if isinstance(adapter, LowRank) else None
    if factors is None:
        return None
    delta = stored_delta(factors, transposed=target.transposed, dtype=torch.float64)
    weight = target.parameter.detach()
    return weight + delta.dense().reshape(weight.shape)


def _by_delta(adapter: object, name: str, target: Target) -> Tensor | None:
    delta = adapter.delta(name) if isinstance(adapter, Additive) else None
    return None if delta is None else target.parameter.detach() + delta
