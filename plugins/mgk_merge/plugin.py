"""The hooks of mgk_merge: the rule ``exact``, and the engine of every rule that changes deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_core.contract.specs import DeltaSpec
from mgk_merge.rules import DareSpec, WiseSpec
from mgk_merge.spec import MergeSpec

if TYPE_CHECKING:
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.outcome import MergeReport, Proposal
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the rule ``exact`` and the transforms ``dare`` and ``wise-ft``."""
    registry.add("merge", "exact", MergeSpec)
    registry.add("transform", "dare", DareSpec)
    registry.add("transform", "wise-ft", WiseSpec)


@hookimpl
def mgk_merge(
    model: nn.Module, adapter: Adapter, proposal: Proposal, spec: MergeSpec | DeltaSpec
) -> MergeReport:
    """Merge exactly, or by a rule that only defines what becomes of a delta."""
    from mgk_merge.exact import merge, merge_changed

    if isinstance(spec, DeltaSpec):
        return merge_changed(model, adapter, proposal, spec)
    return merge(model, adapter, proposal, spec)
