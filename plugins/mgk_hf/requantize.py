"""Requantize a merged base, and keep what the packed numbers cannot represent next to them.

W' is the master, fp32. After it is packed, W' − Q(W') becomes the model's residual, as the part of a sum that
bf16 cannot hold does: each phase merges into Q(W) + residual, so over any number of phases nothing is lost but
fp32 rounding. The residuals lie in the computer's memory, 4 bytes a number, since no forward pass needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.outcome import MergeReport, WeightReport
from mgk_hf.packed import Packed
from mgk_hf.quantized import dequantize


def distances_of(
    packed: Sequence[Packed], held: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return ‖W − Q(W)‖ / ‖W‖ by weight name. held: W − Q(W)."""
    found = {}
    for module in packed:
        if module.name in held:
            quantized = dequantize(module.module)
            found[module.name] = _ratio(
                held[module.name].to(quantized.device), quantized
            )
    return found


def _ratio(held: Tensor, quantized: Tensor) -> float:
    size = float((quantized + held).norm())
    return float(held.norm()) / size if size else 0.0


def fill_plain(
    module: Packed, dtype: torch.dtype, residuals: dict[str, Tensor]
) -> None:
    """Put Q(W) in the packed weight's place, rounded once; ``residuals`` takes what ``dtype`` cannot hold of it."""
    quantized = dequantize(module.module)
    module.fill(quantized.to(dtype))
    _note_rest(module, quantized, residuals)


def add_held(
    packed: Sequence[Packed], held: Mapping[str, Tensor], residuals: dict[str, Tensor]
) -> None:
    """Make masters of the plain weights that were merged into Q(W)."""
    for module in packed:
        if module.name in held:
            weight = _plain(module)
            master = _master(module, residuals) + held[module.name].to(weight.device)
            weight.copy_(master)
            _note_rest(module, master, residuals)


def pack_anew(
    packed: Sequence[Packed],
    held: Mapping[str, Tensor],
    residuals: dict[str, Tensor],
    adapter: Adapter,
    report: MergeReport,
) -> tuple[MergeReport, str]:
    """Pack every merged weight; put those back that no delta changed. Returns the report and its warnings.

    :param held: W − Q(W) of before, by weight name
    :param residuals: takes W' − Q(W')
    :param report: of the merge into plain weights; its entries for packed ones are replaced
    """
    rows, targets = {w.name: w for w in report.weights}, adapter.targets()
    apart: dict[str, float] = {}
    for module in packed:
        master, name = _master(module, residuals), module.name
        module.put_back()
        if name in targets:
            before = dequantize(module.module)
            delta = master - before
            if name in held:
                master.add_(held[name].to(master.device))
            module.fill_packed(master)
            after = dequantize(module.module)
            rest = master - after
            rows[name] = _row(rows[name], module, after - before, delta, rest)
            apart[name] = _ratio(rest, after)
        elif name not in held:
            continue
        else:
            rest = held[name]
        residuals[name] = rest.to("cpu", torch.float32)
    return _summed(report, tuple(rows.values())), _how(apart)


def _plain(module: Packed) -> Tensor:
    weight: Any = module.module.weight
    found: Tensor = weight.detach()
    return found


def _master(module: Packed, residuals: dict[str, Tensor]) -> Tensor:
    """Return a plain weight, fp32, with its residual, which is no longer one."""
    weight, rest = _plain(module), residuals.pop(module.name, None)
    return weight.float() if rest is None else weight.float() + rest


def _note_rest(module: Packed, master: Tensor, residuals: dict[str, Tensor]) -> None:
    weight = _plain(module)
    if weight.dtype == master.dtype:
        return  # it holds all of it
    rest = master - weight
    if bool(rest.any()):
        residuals[module.name] = rest


def _row(
    row: WeightReport, module: Packed, visible: Tensor, delta: Tensor, rest: Tensor
) -> WeightReport:
    """Return what merging and packing did to one weight; the packing's own error is the bound of its rounding."""
    size = float(torch.dot(delta.flatten(), delta.flatten()))
    kept = float(torch.dot(visible.flatten(), delta.flatten())) / size if size else 1.0
    error = float(rest.abs().max())
    return evolve(row, dtype=module.kind, kept=kept, max_error=error, bound=error)


def _summed(report: MergeReport, rows: tuple[WeightReport, ...]) -> MergeReport:
    whole = sum(w.delta_norm**2 for w in rows)
    kept = sum(w.kept * w.delta_norm**2 for w in rows) / whole if whole else 1.0
    return evolve(
        report, weights=rows, kept=kept, max_error=max(w.max_error for w in rows)
    )


def _how(apart: Mapping[str, float]) -> str:
    if not apart:
        return "no packed weight was merged into, so none was requantized"
    return (
        f"requantized for the next phase: ‖W' − Q(W')‖ / ‖W'‖ is {sum(apart.values()) / len(apart):.3g} on average, at"
        f" most {max(apart.values()):.3g}; the full-precision weights are kept as well; not exact"
    )
