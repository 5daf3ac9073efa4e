"""The hooks of mgk_stack: adapter types ``stack`` and ``loaded``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgk_core.contract.hookspecs import hookimpl
from mgk_stack.spec import LoadedSpec, StackSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.specs import SpecRegistry

MGK_CHECK: dict[str, dict[str, Any]] = {
    "adapter:stack": {
        "adapters": {
            "low": {"type": "lora", "rank": 2, "alpha": 3.0, "targets": ["*"]},
            "all": {"type": "full", "targets": ["*"]},
        }
    },
}


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the types ``stack`` and ``loaded``."""
    registry.add("adapter", "stack", StackSpec)
    registry.add("adapter", "loaded", LoadedSpec)


@hookimpl
def mgk_attach_adapter(
    model: nn.Module, spec: StackSpec | LoadedSpec, name: str
) -> Adapter:
    """Attach several adapters, or one from its files."""
    from mgk_stack.attach import attach_stack
    from mgk_stack.loaded import attach_loaded

    if isinstance(spec, LoadedSpec):
        return attach_loaded(model, spec, name)
    return attach_stack(model, spec, name)
