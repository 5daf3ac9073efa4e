"""Configuration of the optimizers and of the step."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.errors import nearest
from mgk_core.contract.settings import StepOptions
from mgk_core.contract.specs import Spec, above, at_least, between, one_of, option

OF_A_GROUP = ("lr", "weight_decay")


@frozen(kw_only=True)
class OptimizerSpec(StepOptions):
    """What every optimizer here shares: what the step reads, weight decay, and rates by parameter."""

    weight_decay: float = option(
        0.0, at_least(0), help="decay of the adapter's own parameters"
    )
    lr_ratio: float | None = option(
        None,
        above(0),
        help="LoRA+: the rate of every B is lr · lr_ratio (16 in the paper); none: lr for A and B",
    )
    groups: dict[str, dict[str, float]] = option(
        {},
        help="pattern of parameter names → lr and weight_decay of its own, the first match counts;"
        ' "lora_B" means every B',
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for pattern, table in self.groups.items():
            if wrong := sorted(table.keys() - set(OF_A_GROUP)):
                raise ValueError(
                    f"groups: {pattern!r}: unknown key {wrong[0]!r}{nearest(wrong[0], OF_A_GROUP)}"
                )
            if not table or min(table.values()) < 0:
                raise ValueError(
                    f"groups: {pattern!r}: expected {' or '.join(OF_A_GROUP)}, each a number >= 0,"
                    f" got {table}"
                )


@frozen(kw_only=True)
class SgdSpec(OptimizerSpec):
    """Stochastic gradient descent, with momentum if wanted."""

    momentum: float = option(0.0, between(0, 1), help="0: plain")
    nesterov: bool = option(False, help="Nesterov's momentum; needs momentum > 0")

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
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
        super().__attrs_post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas: expected two numbers from 0 to below 1, got {list(self.betas)}"
            )


@frozen(kw_only=True)
class Adamw8bitSpec(AdamwSpec):
    """AdamW whose moments are kept in 8 bits, by blocks (Dettmers et al. 2022, arXiv 2110.02861).

    From the library bitsandbytes: ``pip install 'mgk[optimizers]'``.
    """

    min_8bit_size: int = option(
        4096, at_least(1), help="parameters with fewer entries keep 32-bit moments"
    )


@frozen(kw_only=True)
class AdamwScheduleFreeSpec(AdamwSpec):
    """AdamW that needs no falling learning rate: what is evaluated and merged is an average
    (Defazio et al. 2024, arXiv 2405.15682).

    From the library schedulefree: ``pip install 'mgk[optimizers]'``.
    """

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.is_constant:
            raise ValueError(
                f"schedule: expected 'constant', got {self.schedule!r}; this optimizer averages"
                " instead of lowering lr (warmup_steps and warmup_ratio may be used)"
            )
        if self.betas[0] == 0:
            raise ValueError(
                "betas: the first one is the average's share; expected above 0"
            )


@frozen(kw_only=True)
class AdafactorSpec(OptimizerSpec):
    """Adafactor: a second moment by row and column, none of the first (Shazeer & Stern 2018, arXiv 1804.04235).

    ``lr`` is relative: it is multiplied by a parameter's own root mean square, at least ``eps2``.
    """

    beta2_decay: float = option(
        -0.8, between(-1, 0), help="the second moment's decay is 1 − step^beta2_decay"
    )
    eps2: float = option(1e-3, above(0), help="smallest scale of a parameter")
    d: float = option(1.0, at_least(1), help="largest root mean square of an update")


@frozen(kw_only=True)
class MuonSpec(AdamwSpec):
    """Muon: momentum, made orthogonal (Jordan et al. 2024), for matrices; AdamW for all else.

    Vectors, and matrices with a side of 1, are trained by AdamW with ``betas`` and ``eps``.
    """

    momentum: float = option(0.95, between(0, 1), help="decay of the momentum")
    nesterov: bool = option(True, help="Nesterov's momentum")
    ns_steps: int = option(
        5, at_least(1), help="Newton–Schulz iterations that make it orthogonal"
    )
    adjust: str = option(
        "match_rms_adamw",
        one_of("match_rms_adamw", "original"),
        help="how lr depends on the shape; match_rms_adamw: AdamW's rates may be kept",
    )


@frozen(kw_only=True)
class StandardStepSpec(Spec):
    """The step: forward, backward, accumulation, clipping, update."""

    gradients: str = option(
        "auto",
        one_of("auto", "autograd"),
        help="auto: the base's own hand-derived gradients where it has them",
    )
