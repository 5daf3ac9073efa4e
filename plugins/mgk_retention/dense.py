"""The adapter type ``dense``: all of a weight is trained, as in full fine-tuning, and merged like any adapter."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from torch import nn

from mgk_core.adapter import SLOT, Target, aliases_of, base_name
from mgk_core.errors import InputError, nearest
from mgk_core.inject import put
from mgk_core.testing.reference import DenseAdapter, DensePart
from mgk_retention.specs import DenseSpec


def attach(model: nn.Module, spec: DenseSpec, name: str) -> DenseAdapter:
    """Put a D of zeros on every linear module that ``spec`` names. Nothing is changed where it fails.

    :raises InputError: a pattern that matches nothing, or a target whose weight is tied
    """
    chosen = _choose(model, spec)
    for path, module in chosen.items():
        if len(names := aliases_of(model, module.weight)) > 1:
            raise InputError(f"target {path}: its weight is tied ({', '.join(names)}); name targets without it")
    parts, places = {}, {}
    for path, module in chosen.items():
        weight = f"{path}.weight" if path else "weight"
        parts[weight], places[weight] = DensePart(module.weight.detach()), Target(weight, module)
        put(module, name, parts[weight])
    return DenseAdapter(name, parts, places)


def _choose(model: nn.Module, spec: DenseSpec) -> dict[str, nn.Linear]:
    linear = dict(_linears(model))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found: dict[str, nn.Linear] = {}
    for pattern in spec.targets:
        matched = {n: m for n, m in linear.items() if _matches(pattern, n, is_head=m is head)}
        if not matched:
            raise InputError(f"target pattern {pattern!r} matches no linear module{nearest(pattern, linear)}")
        found |= matched
    return {n: m for n, m in linear.items() if n in found}


def _linears(model: nn.Module) -> Iterable[tuple[str, nn.Linear]]:
    """Yield what is called as a linear map: torch's attention reads its output projection's weight uncalled."""
    for raw, module in model.named_modules():
        path = base_name(raw) if raw else ""
        uncalled = type(module).__name__ == "NonDynamicallyQuantizableLinear"
        if isinstance(module, nn.Linear) and not uncalled and path is not None and SLOT not in raw.split("."):
            yield path, module


def _matches(pattern: str, name: str, *, is_head: bool) -> bool:
    if pattern == "all-linear":
        return not is_head
    return fnmatch.fnmatchcase(name, pattern) or name.endswith(f".{pattern}")
