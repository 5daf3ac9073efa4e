"""Putting VeRA on a model: choose, check, build, and only then touch the model."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mgk_core.adapter import SLOT, Target, aliases_of, base_name
from mgk_core.errors import InputError, nearest
from mgk_core.inject import put
from mgk_vera.adapter import VeraAdapter
from mgk_vera.part import Projections, VeraPart
from mgk_vera.spec import VeraSpec


def attach(model: nn.Module, spec: VeraSpec, name: str) -> VeraAdapter:
    """Attach VeRA to the linear modules that ``spec`` names. Nothing is changed where it fails.

    :raises InputError: a pattern that matches nothing, or a target whose weight is tied
    """
    chosen = choose(model, spec.targets, spec.exclude)
    shapes = [module.weight.shape for module in chosen.values()]
    shared = Projections(spec.rank, max(s[0] for s in shapes), max(s[1] for s in shapes), spec.projection_seed)
    parts, places = {}, {}
    for path, module in chosen.items():
        weight = f"{path}.weight" if path else "weight"
        part = VeraPart(shared, module.weight, spec.d_initial).to(module.weight.device)
        put(module, name, part)
        parts[weight], places[weight] = part, Target(weight, module)
    return VeraAdapter(name, shared, parts, places)


def choose(model: nn.Module, patterns: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Linear]:
    """Return name → linear module for what the patterns mean and ``exclude`` does not."""
    linear = dict(_linears(model))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for pattern in (*patterns, *exclude):
        if not any(_matches(pattern, n, is_head=m is head) for n, m in linear.items()):
            raise InputError(f"target pattern {pattern!r} matches no linear module{nearest(pattern, linear)}")
    wanted = {n: m for n, m in linear.items() if any(_matches(p, n, is_head=m is head) for p in patterns)}
    chosen = {n: m for n, m in wanted.items() if not any(_matches(p, n, is_head=m is head) for p in exclude)}
    if not chosen:
        raise InputError("adapter.targets and exclude leave nothing: name at least one linear module")
    for path, module in chosen.items():
        if len(names := aliases_of(model, module.weight)) > 1:
            raise InputError(f"target {path}: its weight is tied ({', '.join(names)}); exclude it")
    return chosen


def _linears(model: nn.Module) -> Iterable[tuple[str, nn.Linear]]:
    """Yield what is called as a linear map: torch's attention reads its output projection's weight uncalled."""
    for raw, module in model.named_modules():
        path = base_name(raw) if raw else ""
        called = isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
        if called and path is not None and SLOT not in raw.split("."):
            yield path, module


def _matches(pattern: str, name: str, *, is_head: bool) -> bool:
    if pattern == "all-linear":
        return not is_head
    return fnmatch.fnmatchcase(name, pattern) or name.endswith(f".{pattern}")
