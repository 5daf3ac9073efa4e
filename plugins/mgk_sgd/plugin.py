"""The hooks of mgk_sgd."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_sgd import specs

if TYPE_CHECKING:
    import torch

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.context import StepContext, StepFn
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Register the optimizers and the step ``standard``."""
    registry.add("optimizer", "sgd", specs.SgdSpec)
    registry.add("optimizer", "adamw", specs.AdamwSpec)
    registry.add("optimizer", "adamw-8bit", specs.Adamw8bitSpec)
    registry.add("optimizer", "adamw-schedule-free", specs.AdamwScheduleFreeSpec)
    registry.add("optimizer", "adafactor", specs.AdafactorSpec)
    registry.add("optimizer", "muon", specs.MuonSpec)
    registry.add("step", "standard", specs.StandardStepSpec)


@hookimpl
def mgk_make_optimizer(
    adapter: Adapter, spec: specs.OptimizerSpec
) -> torch.optim.Optimizer:
    """Make the optimizer of one of these types."""
    from mgk_sgd.optimizers import make_optimizer

    return make_optimizer(adapter, spec)


@hookimpl
def mgk_make_step(ctx: StepContext) -> StepFn:
    """Make the standard step, for any optimizer."""
    from mgk_sgd.step import StandardStep

    return StandardStep(ctx)
