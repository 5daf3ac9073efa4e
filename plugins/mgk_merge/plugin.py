"""The hooks of mgk_merge: merge rule ``exact``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_merge.spec import MergeSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.outcome import MergeReport, Proposal
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the rule ``exact``."""
    registry.add("merge", "exact", MergeSpec)


@hookimpl
def mgk_merge(
    model: nn.Module, adapter: Adapter, proposal: Proposal, spec: MergeSpec
) -> MergeReport:
    """Merge exactly."""
    from mgk_merge.exact import merge

    return merge(model, adapter, proposal, spec)
