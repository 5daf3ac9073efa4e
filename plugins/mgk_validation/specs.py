"""Configuration of the gates and of the recoveries."""

from __future__ import annotations

from typing import Any

from attrs import NOTHING, frozen

from mgk_core.contract.specs import Spec, at_least, between, one_of, option


@frozen(kw_only=True)
class GateSpec(Spec):
    """What every gate shares: the probes that it checks."""

    probes: tuple[str, ...] = option(
        ("*",), help="globs of the probes that this gate checks"
    )


@frozen(kw_only=True)
class NoisyGateSpec(GateSpec):
    """A gate whose limit is never tighter than the noise of what it compares."""

    stderrs: float = option(
        2.0,
        at_least(0),
        help="standard errors of the (paired) difference that are allowed as noise; 0: none",
    )


@frozen(kw_only=True)
class MaxDropSpec(NoisyGateSpec):
    """Refuse if a probe of the base, of an earlier phase or of this one drops by more than allowed."""

    absolute: float | None = option(
        None, at_least(0), help="allowed drop in the metric's unit"
    )
    relative: float | None = option(
        None, at_least(0), help="allowed drop as a share of the score compared with"
    )
    against: str = option(
        "best",
        one_of("best", "previous"),
        help="the best row since the probe was taught, or the previous row",
    )


@frozen(kw_only=True)
class KeepBaseSpec(NoisyGateSpec):
    """Refuse if the base's own probes keep less than a share of their baseline score."""

    share: float = option(
        0.97,
        between(0, 1),
        help="share to keep; of likelihoods: ratio of geometric means",
    )


@frozen(kw_only=True)
class MinGainSpec(GateSpec):
    """Refuse if this phase's own probes gained too little over the previous row."""

    absolute: float | None = option(
        None, at_least(0), help="smallest gain in the metric's unit"
    )
    relative: float | None = option(
        None, at_least(0), help="smallest gain as a share of the previous score"
    )
    to_floor: float | None = option(
        None,
        between(0, 1),
        help="smallest gain as a share of the distance to the probe's floor",
    )
    stderrs: float = option(
        0.0,
        at_least(0),
        help="smallest gain in standard errors of the (paired) difference",
    )


@frozen(kw_only=True)
class ThresholdSpec(GateSpec):
    """Refuse if a probe of the base, of an earlier phase or of this one is worse than a fixed score."""

    limit: float = option(
        NOTHING, help="worst score that passes, in the metric's unit and direction"
    )


@frozen(kw_only=True)
class ScaleSearchSpec(Spec):
    """Merge a fraction of the delta: try these scales in order."""

    scales: tuple[float, ...] = option(
        (0.75, 0.5, 0.25), help="factors on every delta, tried in this order"
    )

    def __attrs_post_init__(self) -> None:
        if not self.scales or not all(0 < scale < 1 for scale in self.scales):
            raise ValueError(
                f"scales: expected numbers above 0 and below 1, got {list(self.scales)}"
            )


@frozen(kw_only=True)
class TrainOnSpec(Spec):
    """Continue training with retention methods added, then evaluate the gates again."""

    steps: int = option(50, at_least(1), help="further optimizer steps")
    times: int = option(1, at_least(1), help="at most how many times")
    retention: dict[str, Any] = option(
        {}, help="methods to add: tables as in the phase itself"
    )


@frozen(kw_only=True)
class KeepApartSpec(Spec):
    """Keep the adapter beside the model instead of merging it; the base is not changed."""


@frozen(kw_only=True)
class StopSpec(Spec):
    """Roll the phase back and stop the run at once."""


__all__ = [
    "GateSpec", "KeepApartSpec", "KeepBaseSpec", "MaxDropSpec", "MinGainSpec", "NoisyGateSpec", "ScaleSearchSpec",
    "StopSpec", "ThresholdSpec", "TrainOnSpec",
]  # fmt: skip
