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


def _sample() -> Probe:
    """Return a probe of pairs for the conformance tests."""
    from mgk_core.contract.bundle import Choice, Probe

    answers = ((1, 2), (3,), (4, 5, 6), (2, 4), (6,), (5, 1))
    items = tuple(
        Choice((i % 7,), (answer, answers[i - 1]), i % 2)
        for i, answer in enumerate(answers)
    )
    return Probe("pairs", "base", "preference", items, higher_is_better=True)


MGK_CHECK = {
    "metric:preference": _sample,
    "loss:likelihood": {"label_smoothing": 0.1, "prompt_weight": 0.2},
    "loss:distill": {"likelihood_weight": 1.0},
}
"""What `mgk check-plugin` tests: options with which each loss is an objective of its own."""


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
