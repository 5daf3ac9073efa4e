"""The hooks of mgk_weights: adapter types ``full`` and ``rows``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mgk_core.contract.hookspecs import hookimpl
from mgk_weights.spec import FullSpec, RowsSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.specs import SpecRegistry

MGK_CHECK: dict[str, dict[str, Any]] = {
    "adapter:full": {"targets": ["*"]},
    "adapter:rows": {"ids": [1, 3, 4], "targets": ["*"]},
}


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the types ``full`` and ``rows``."""
    registry.add("adapter", "full", FullSpec)
    registry.add("adapter", "rows", RowsSpec)


@hookimpl
def mgk_attach_adapter(
    model: nn.Module, spec: FullSpec | RowsSpec, name: str
) -> Adapter:
    """Attach deltas to whole modules, or to rows of a table."""
    from mgk_weights.attach import attach_full, attach_rows

    if isinstance(spec, RowsSpec):
        return attach_rows(model, spec, name)
    return attach_full(model, spec, name)
