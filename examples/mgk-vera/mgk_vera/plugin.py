"""The hooks of mgk_vera: one adapter type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk import hookimpl
from mgk_vera.spec import VeraSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.specs import Spec, SpecRegistry

MGK_API_VERSION = 1


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the adapter type ``vera``."""
    registry.add("adapter", "vera", VeraSpec)


@hookimpl
def mgk_attach_adapter(model: nn.Module, spec: Spec, name: str) -> Adapter | None:
    """Attach VeRA where the spec is ours."""
    if not isinstance(spec, VeraSpec):
        return None
    from mgk_vera.adapter import attach

    return attach(model, spec, name)
