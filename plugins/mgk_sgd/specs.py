"""Configuration of the optimizers and of the step."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.settings import StepOptions
from mgk_core.contract.specs import Spec, above, at_least, between, one_of, option


@frozen(kw_only=True)
class OptimizerSpec(StepOptions):
    """What every optimizer here shares: what the step reads, and weight decay."""

    weight_decay: float = option(
        0.0, at_least(0), help="decay of the adapter's own parameters"
    )


@frozen(kw_only=True)
class SgdSpec(OptimizerSpec):
    """Stochastic gradient descent, with momentum if wanted."""

    momentum: float = option(0.0, between(0, 1), help="0: plain")
    nesterov: bool = option(False, help="Nesterov's momentum; needs momentum > 0")

    def __attrs_post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum > 0, and momentum is 0")


@frozen(kw_only=True)
class AdamwSpec(OptimizerSpec):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    betas: tuple[float, float] = option(
        (0.9, 0.999), help="decay of the first and the second moment"
    )
    eps: float = option(1e-8, above(0), help="added to the root of the second moment")

    def __attrs_post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas: expected two numbers from 0 to below 1, got {list(self.betas)}"
            )


@frozen(kw_only=True)
class StandardStepSpec(Spec):
    """The step: forward, backward, accumulation, clipping, update."""

    gradients: str = option(
        "auto",
        one_of("auto", "autograd"),
        help="auto: the base's own hand-derived gradients where it has them",
    )
