"""The hooks of mgk_peft: adapter types ``peft:LORA``, ``peft:OFT``, ``peft:IA3`` …

PEFT itself is imported when such a type is first named, so mgk works without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_peft.spec import PeftSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim every type that begins with ``peft:``."""
    registry.add("adapter", "peft:*", PeftSpec)


@hookimpl
def mgk_attach_adapter(model: nn.Module, spec: PeftSpec, name: str) -> Adapter:
    """Attach one of PEFT's tuners."""
    from mgk_peft.attach import attach

    return attach(model, spec, name)
