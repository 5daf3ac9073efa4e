"""The hooks of mgk_preference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_preference.specs import LikelihoodSpec

if TYPE_CHECKING:
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.objective import Objective
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the losses."""
    registry.add("loss", "likelihood", LikelihoodSpec)


@hookimpl
def mgk_make_objective(ctx: PhaseContext) -> Objective | None:
    """Make what a phase minimises."""
    del ctx
    return None
