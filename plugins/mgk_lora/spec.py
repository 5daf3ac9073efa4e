"""The keys of the adapter types ``lora`` and ``dora``."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import Spec, above, at_least, between, one_of, option

DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
PLAIN = ("gaussian", "kaiming", "orthogonal")
"""Initialisations that need nothing."""
OF_WEIGHTS = ("pissa", "milora")
"""Those that decompose the weight."""
OF_INPUTS = ("corda", "lora-null", "eva")
"""Those that first run texts through the base and decompose what each weight gets."""
RESIDUAL = ("pissa", "milora", "corda", "lora-null")
"""Those whose B is not zero: the delta is scale · (BA − B₀A₀), so that the base stays untouched."""
INITS = (*PLAIN, *OF_WEIGHTS, *OF_INPUTS)


@frozen(kw_only=True)
class LoraSpec(Spec):
    """LoRA: output = x Wᵀ + scale · (x Aᵀ) Bᵀ, scale = alpha / rank."""

    rank: int = option(8, at_least(1), help="rank of each delta")
    alpha: float = option(16.0, above(0), help="scale of each delta is alpha / rank")
    targets: tuple[str, ...] = option(
        ("all-linear",),
        help="modules or plain weights: globs, names or their last parts, 're:' regular expressions, 'all-linear'",
    )
    exclude: tuple[str, ...] = option(
        (), help="modules to skip even if targets match them; same patterns"
    )
    rank_pattern: dict[str, int] = option(
        {}, help="pattern → rank, the first match counts"
    )
    alpha_pattern: dict[str, float] = option(
        {}, help="pattern → alpha, the first match counts"
    )
    rslora: bool = option(False, help="scale = alpha / sqrt(rank)")
    dropout: float = option(
        0.0,
        between(0, 0.999),
        help="on the input of A while training; not for plain weights",
    )
    init: str = option(
        "gaussian",
        one_of(*INITS),
        help="A and B at the start; corda and lora-null use data.calibration, eva the training data",
    )
    init_rows: int = option(
        256, at_least(1), help="training examples that init = eva uses, at most"
    )
    init_std: float = option(
        0.01, above(0), help="standard deviation of A with init = gaussian"
    )
    bias: bool = option(
        False,
        help="train a bias of the delta too; the base's module must have one to take it up",
    )
    tied: str = option(
        "refuse",
        one_of("refuse", "untie"),
        help="what to do about a target whose weight is tied",
    )
    dtype: str = option(
        "auto",
        one_of(*DTYPES),
        help="of A and B; auto: float32, or float64 on a float64 base",
    )


@frozen(kw_only=True)
class DoraSpec(LoraSpec):
    """DoRA: the norm of each row of W + ΔW is trained apart from its direction."""


@frozen(kw_only=True)
class DirectorySpec(Spec):
    """A LoRA or DoRA as PEFT wrote it: targets, ranks and scales are those of its files."""

    path: str = option(
        "", help="directory with adapter_config.json and adapter_model.safetensors"
    )

    def __attrs_post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: expected a directory")
