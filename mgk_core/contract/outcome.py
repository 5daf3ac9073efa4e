"""What passes between the hooks of a transition: proposal, report, verdict, recovery, outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from attrs import Attribute, field, frozen
from torch import Tensor

from mgk_core.contract.specs import DeltaSpec


@runtime_checkable
class Transform(Protocol):
    """A change to deltas before they are merged; transforms chain in the order of the proposal."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return the changed delta, fp32. delta: (out, in) after reshape, or the block ``rows``."""


@runtime_checkable
class FactorTransform(Transform, Protocol):
    """A transform that acts on the inputs only (ΔW → ΔW · M), so low rank stays low rank."""

    def right(self, weight: str, a: Tensor) -> Tensor:
        """Return ``a @ M``. a: (rank, in)."""


def _finite(_: object, attribute: Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{attribute.name}: expected a finite number, got {value}")


@frozen(eq=False)
class ByDelta:
    """A `DeltaSpec` as a transform. whole: it is given all rows of a delta at once."""

    spec: DeltaSpec
    whole: bool = True

    @property
    def name(self) -> str:
        """The spec's label."""
        return self.spec.label

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return what the spec makes of the delta, on the delta's device and in its dtype."""
        return self.spec.change(weight, delta.clone()).to(delta)


@frozen(eq=False)
class Proposal:
    """What to merge. Plugins in `mgk_propose_merge` change it with `attrs.evolve`.

    scale multiplies every delta after the transforms. refuse: why nothing may be merged. last: no
    phase comes after, so the merged weights are the run's model and nothing trains on them. verify:
    compares merged with unmerged outputs (`MergeError` where they differ); only a rule that later changes
    weights once they compute the unmerged outputs calls it, at that point.
    """

    scale: float = field(default=1.0, validator=_finite)
    transforms: tuple[Transform, ...] = ()
    keep_apart: bool = False
    refuse: str | None = None
    undo: Literal["memory", "disk"] = "memory"
    spool: str | None = None  # directory for undo="disk"
    last: bool = False
    verify: Callable[[], None] | None = None


@frozen
class WeightReport:
    """What merging did to one weight. Norms are Frobenius norms, fp32.

    kept: share of the delta that the visible weight received, ⟨W' − W, Δ⟩ / ⟨Δ, Δ⟩. kept_total: the
    same with the residual counted in. max_error: largest |S − W'|, what one rounding dropped.
    bound: largest error that rounding S once may make: half a unit in the last place of the largest
    W', 0 where W' has the precision of the sum.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    delta_norm: float
    weight_norm: float
    kept: float
    kept_total: float
    max_error: float
    bound: float

    @property
    def relative(self) -> float:
        """‖ΔW‖ / ‖W‖."""
        return self.delta_norm / self.weight_norm if self.weight_norm else float("inf")


@runtime_checkable
class Undo(Protocol):
    """The old weights, kept until the transition commits."""

    def restore(self) -> None:
        """Put every old tensor and residual back, bit for bit. May be called once."""

    def release(self) -> None:
        """Forget the old tensors (and delete what was spooled)."""


@frozen(eq=False)
class MergeReport:
    """What was merged, and what rounding cost.

    exact: the merged model is meant to compute what the unmerged one did. change: where it is not,
    (weight, delta) → the delta that was merged instead, as `DeltaSpec.change`; the run checks the merged
    weights of a plugin's rule against it.
    """

    adapter: str
    rule: str
    weights: tuple[WeightReport, ...]
    kept: float
    kept_total: float
    max_error: float
    relative: float
    exact: bool = True
    warnings: tuple[str, ...] = ()
    undo: Undo | None = field(default=None, repr=False)
    change: Callable[[str, Tensor], Tensor] | None = field(default=None, repr=False)


@frozen
class Refusal:
    """One gate's no. evidence: the figures that it rests on."""

    gate: str
    reason: str
    probe: str | None = None
    evidence: Mapping[str, Any] = field(factory=dict)


@frozen
class Verdict:
    """What one gate decides. notes: things to report in any case (a limit tighter than the noise)."""

    accept: bool
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


@frozen(eq=False)
class Recovery:
    """What to try after a refusal. `action` determines which of the other fields count.

    ``propose``: merge again with ``proposal``. ``train``: train on for ``steps`` with ``retention``
    specs added, then through the transition again. ``keep_apart``, ``stop``: no further field.
    """

    action: Literal["propose", "train", "keep_apart", "stop"]
    method: str
    proposal: Proposal | None = None
    steps: int = 0
    retention: tuple[Any, ...] = ()
    evidence: Mapping[str, Any] = field(factory=dict)


Result = Literal["committed", "kept_apart", "rolled_back", "failed", "interrupted"]
"""How a phase ended."""


@frozen(eq=False)
class Outcome:
    """How a phase ended. tried: every recovery, in order, with the refusal that led to it."""

    result: Result
    report: MergeReport | None = None
    refusals: tuple[Refusal, ...] = ()
    tried: tuple[Recovery, ...] = ()
    error: BaseException | None = None


LossTerm = Callable[[int], Tensor]
"""Called once per optimizer step with the step number; a 0-dim tensor added to the mean loss."""


__all__ = [
    "ByDelta",
    "FactorTransform",
    "LossTerm",
    "MergeReport",
    "Outcome",
    "Proposal",
    "Recovery",
    "Refusal",
    "Result",
    "Transform",
    "Undo",
    "Verdict",
    "WeightReport",
]
