"""Putting VeRA on a model: choose, check, build, and only then touch the model."""

from __future__ import annotations

from torch import nn

from mgk_core.contract.adapter import Target
from mgk_core.model.inject import put
from mgk_core.model.targets import choose_linear
from mgk_vera.adapter import VeraAdapter
from mgk_vera.part import Projections, VeraPart
from mgk_vera.spec import VeraSpec


def attach(model: nn.Module, spec: VeraSpec, name: str) -> VeraAdapter:
    """Attach VeRA to the linear modules that ``spec`` names. Nothing is changed where it fails.

    :raises InputError: a pattern that matches nothing, or a target whose weight is tied
    """
    chosen = choose_linear(model, spec.targets, spec.exclude)
    shapes = [module.weight.shape for module in chosen.values()]
    shared = Projections(
        spec.rank, max(s[0] for s in shapes), max(s[1] for s in shapes), spec.projection_seed
    )
    parts, places = {}, {}
    for path, module in chosen.items():
        weight = f"{path}.weight" if path else "weight"
        part = VeraPart(shared, module.weight, spec.d_initial).to(module.weight.device)
        put(module, name, part)
        parts[weight], places[weight] = part, Target(weight, module)
    return VeraAdapter(name, shared, parts, places)
