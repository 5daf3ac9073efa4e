"""The hooks of mgk_lora: adapter types ``lora`` and ``dora``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_lora.spec import DoraSpec, LoraSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the types ``lora`` and ``dora``."""
    registry.add("adapter", "lora", LoraSpec)
    registry.add("adapter", "dora", DoraSpec)


@hookimpl
def mgk_attach_adapter(model: nn.Module, spec: LoraSpec, name: str) -> Adapter:
    """Attach LoRA or DoRA."""
    from mgk_lora.attach import attach

    return attach(model, spec, name)
