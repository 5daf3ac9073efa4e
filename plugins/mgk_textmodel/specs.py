"""Configuration of the reference network and of its data."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import Spec, above, at_least, between, one_of, option


@frozen(kw_only=True)
class ReferenceSpec(Spec):
    """The reference network: a small multi-layer perceptron with random weights."""

    widths: tuple[int, ...] = option(
        (64, 128, 128, 32), help="inputs, hidden layers, outputs"
    )
    init_std: float = option(
        0.1, at_least(0), help="standard deviation of the weights; biases are zero"
    )
    activation: str = option(
        "gelu", one_of("gelu", "relu", "tanh"), help="between the layers"
    )
    seed: int = option(
        0,
        at_least(0),
        help="of the weights: the base is part of the declaration, not of the run",
    )

    def __attrs_post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(
                f"widths: expected two or more integers >= 1, got {list(self.widths)}"
            )


@frozen(kw_only=True)
class PairsSpec(Spec):
    """What both kinds of data share: how much of it, and its name."""

    seed: int = option(0, at_least(0), help="of everything random in this data set")
    size: int = option(320, at_least(1), help="training examples")
    items: int = option(256, at_least(2), help="held-out examples of each probe")
    probe: str = option("", help="name of the probe; default: type and seed")
    metric: str = option(
        "squared_error",
        help="what the probe measures: any metric that a plugin answers for",
    )

    @property
    def probe_name(self) -> str:
        """The probe's name; unique within a pipeline as long as seeds are."""
        return self.probe or f"{self.type}-{self.seed}"


@frozen(kw_only=True)
class TeacherSpec(PairsSpec):
    """A fixed linear teacher, y = T x + noise, with inputs around a mean of its own."""

    teacher_std: float = option(
        0.1, above(0), help="standard deviation of the entries of T"
    )
    shift: float = option(12.0, at_least(0), help="length of the inputs' mean")
    overlap: float = option(
        0.5,
        between(0, 1),
        help="share of the mean that all tasks of one family have in common",
    )
    spread: float = option(
        0.5, above(0), help="standard deviation of the inputs around their mean"
    )
    noise_std: float = option(
        0.5, at_least(0), help="standard deviation of the noise on each output"
    )
    family: int = option(0, at_least(0), help="seed of the common part of the mean")


@frozen(kw_only=True)
class NoiseSpec(PairsSpec):
    """Random inputs with unrelated random targets: nothing can be learned, and the probe shows it."""
