"""The hooks of mgk_preference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_preference.specs import (
    DistillSpec,
    DpoSpec,
    KtoSpec,
    LikelihoodSpec,
    OrpoSpec,
    SimpoSpec,
)

if TYPE_CHECKING:
    from mgk_core.contract.bundle import Probe, Score
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.objective import Objective
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the losses, and for the metric of pairs."""
    registry.add("loss", "likelihood", LikelihoodSpec)
    registry.add("loss", "dpo", DpoSpec)
    registry.add("loss", "orpo", OrpoSpec)
    registry.add("loss", "simpo", SimpoSpec)
    registry.add("loss", "kto", KtoSpec)
    registry.add("loss", "distill", DistillSpec)
    registry.add_metric(
        "preference", "share of pairs whose chosen answer is likelier per token"
    )


@hookimpl
def mgk_make_objective(ctx: PhaseContext) -> Objective | None:
    """Make what a phase minimises; None for the plain likelihood."""
    from mgk_preference.objectives import make_objective

    return make_objective(ctx)


@hookimpl
def mgk_evaluate(ctx: PhaseContext, probe: Probe) -> Score:
    """Measure how often the chosen answer is likelier."""
    from mgk_preference.metric import evaluate

    return evaluate(ctx.bundle, probe)
