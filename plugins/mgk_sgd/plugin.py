"""The hooks of mgk_sgd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_sgd.specs import AdamwSpec, OptimizerSpec, SgdSpec, StandardStepSpec

if TYPE_CHECKING:
    import torch

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.context import StepContext, StepFn
    from mgk_core.contract.specs import Spec, SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the optimizers ``sgd`` and ``adamw`` and the step ``standard``."""
    registry.add("optimizer", "sgd", SgdSpec)
    registry.add("optimizer", "adamw", AdamwSpec)
    registry.add("step", "standard", StandardStepSpec)


@hookimpl
def mgk_make_optimizer(adapter: Adapter, spec: Spec) -> torch.optim.Optimizer | None:
    """Make SGD or AdamW."""
    if not isinstance(spec, OptimizerSpec):
        return None
    from mgk_sgd.optimizers import make_optimizer

    return make_optimizer(adapter, spec)


@hookimpl
def mgk_make_step(ctx: StepContext) -> StepFn | None:
    """Make the standard step, for any optimizer."""
    spec = ctx.phase.phase.step
    if not isinstance(spec, StandardStepSpec):
        return None
    from mgk_sgd.step import StandardStep

    return StandardStep(ctx)
