"""The hooks of mgk_sgd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_sgd.specs import AdamwSpec, OptimizerSpec, SgdSpec, StandardStepSpec

if TYPE_CHECKING:
    import torch

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.context import StepContext, StepFn
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the optimizers ``sgd`` and ``adamw`` and the step ``standard``."""
    registry.add("optimizer", "sgd", SgdSpec)
    registry.add("optimizer", "adamw", AdamwSpec)
    registry.add("step", "standard", StandardStepSpec)


@hookimpl
def mgk_make_optimizer(adapter: Adapter, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Make SGD or AdamW."""
    from mgk_sgd.optimizers import make_optimizer

    return make_optimizer(adapter, spec)


@hookimpl
def mgk_make_step(ctx: StepContext) -> StepFn:
    """Make the standard step, for any optimizer."""
    from mgk_sgd.step import StandardStep

    return StandardStep(ctx)
