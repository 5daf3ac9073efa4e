"""The hooks of mgk_textmodel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_textmodel.specs import NoiseSpec, PairsSpec, ReferenceSpec, TeacherSpec

if TYPE_CHECKING:
    import torch

    from mgk_core.contract.bundle import Bundle, PhaseData
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the base ``reference`` and the data ``teacher`` and ``noise``."""
    registry.add("base", "reference", ReferenceSpec)
    registry.add("data", "teacher", TeacherSpec)
    registry.add("data", "noise", NoiseSpec)


@hookimpl
def mgk_build_model(spec: ReferenceSpec, device: torch.device) -> Bundle:
    """Build the reference network."""
    from mgk_textmodel.bundle import ReferenceBundle
    from mgk_textmodel.network import build

    network = build(spec).to(device).requires_grad_(requires_grad=False).eval()
    return ReferenceBundle(network, device)


@hookimpl
def mgk_load_data(spec: PairsSpec, bundle: Bundle) -> PhaseData:
    """Draw the examples of a task."""
    from mgk_textmodel.data import load

    return load(spec, bundle)
