"""The hooks of mgk_lora: adapter types ``lora``, ``dora`` and ``lora-directory``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_lora.spec import OF_INPUTS, DirectorySpec, DoraSpec, LoraSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the types ``lora``, ``dora`` and ``lora-directory``."""
    registry.add("adapter", "lora", LoraSpec)
    registry.add("adapter", "dora", DoraSpec)
    registry.add("adapter", "lora-directory", DirectorySpec)


@hookimpl
def mgk_attach_adapter(
    model: nn.Module, spec: LoraSpec | DirectorySpec, name: str
) -> Adapter:
    """Attach LoRA or DoRA, new or from PEFT's files."""
    if isinstance(spec, DirectorySpec):
        from mgk_lora.peft_format import attach_peft

        adapter = attach_peft(model, Path(spec.path).expanduser(), name)
        adapter.identity = "none"
        return adapter
    from mgk_lora.attach import attach

    return attach(model, spec, name)


@hookimpl
def mgk_init_adapter(adapter: Adapter, ctx: PhaseContext) -> None:
    """Decompose each weight's inputs where ``init`` asks for it."""
    from mgk_lora.adapter import LoraAdapter
    from mgk_lora.informed import initialise

    for own in (adapter, *getattr(adapter, "members", {}).values()):
        if isinstance(own, LoraAdapter) and own.spec.init in OF_INPUTS:
            ctx.notes.append(initialise(own, ctx))
