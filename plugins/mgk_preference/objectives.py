"""Which objective a loss type is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mgk_core.contract.bundle import HasWeights
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.objective import Objective
from mgk_core.contract.specs import Spec
from mgk_preference.distill import make_distill
from mgk_preference.likelihood import Likelihood
from mgk_preference.pairs import Dpo, Orpo, Simpo
from mgk_preference.specs import (
    DistillSpec,
    DpoSpec,
    KtoSpec,
    LikelihoodSpec,
    OrpoSpec,
    SimpoSpec,
)
from mgk_preference.unpaired import Kto

MAKERS: dict[type[Spec], Callable[[PhaseContext, Any], Objective]] = {
    LikelihoodSpec: Likelihood,
    DpoSpec: Dpo,
    OrpoSpec: Orpo,
    SimpoSpec: Simpo,
    KtoSpec: Kto,
    DistillSpec: make_distill,
}


def make_objective(ctx: PhaseContext) -> Objective | None:
    """Return the objective of a phase; None for the base's own loss."""
    spec = ctx.phase.loss
    make = MAKERS.get(type(spec))
    if make is None or (isinstance(spec, LikelihoodSpec) and _is_plain(ctx, spec)):
        return None  # a phase made in Python may have the bare default, `LossSpec`
    return make(ctx, spec)


def _is_plain(ctx: PhaseContext, spec: LikelihoodSpec) -> bool:
    """Return whether the base's own loss is what the phase asks for."""
    weighted = ctx.data is not None and isinstance(ctx.data.train, HasWeights)
    return spec.plain and not weighted
