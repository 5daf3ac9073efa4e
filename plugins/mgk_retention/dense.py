"""The adapter type ``dense``: all of a weight is trained, as in full fine-tuning, and merged like any adapter."""

from __future__ import annotations

from torch import nn

from mgk_core.contract.adapter import Target
from mgk_core.model.inject import put
from mgk_core.model.targets import choose_linear
from mgk_core.testing.reference import DenseAdapter, DensePart
from mgk_retention.specs import DenseSpec


def attach(model: nn.Module, spec: DenseSpec, name: str) -> DenseAdapter:
    """Put a D of zeros on every linear module that ``spec`` names. Nothing is changed where it fails.

    :raises InputError: a pattern that matches nothing, or a target whose weight is tied
    """
    parts, places = {}, {}
    for path, module in choose_linear(model, spec.targets).items():
        weight = f"{path}.weight" if path else "weight"
        parts[weight], places[weight] = (
            DensePart(module.weight.detach()),
            Target(weight, module),
        )
        put(module, name, parts[weight])
    return DenseAdapter(name, parts, places)
