"""Configuration of the methods. Each is an entry of a phase's ``retention``, ``recover`` or ``observe``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from mgk_core.contract.specs import Spec, above, at_least, between, one_of, option

Shapes = Mapping[str, tuple[int, int]]
"""Weight name → (out, in)."""

FLOAT, HALF = 4, 2  # bytes of fp32 and bf16


def _factor_bytes(shapes: Shapes, rank: int) -> int:
    """Return the bytes of both factors of a delta of each weight."""
    return FLOAT * rank * sum(out + inside for out, inside in shapes.values())


@frozen(kw_only=True)
class MethodSpec(Spec):
    """What every method shares: how much of the old data it looks at."""

    max_tokens: int = option(
        4096,
        at_least(1),
        help="positions of a phase's data (or calibration text) looked at",
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes that one phase leaves for the later ones. examples: rows in its training set."""
        return 0


@frozen(kw_only=True)
class MomentsSpec(MethodSpec):
    """A method that rests on second moments, whole or sketched."""

    sketch: int = option(
        64,
        at_least(0),
        help="eigenvectors kept of each second moment; 0: the whole matrix",
    )
    tail: str = option(
        "isotropic",
        one_of("isotropic", "diagonal"),
        help="what stands for the other eigenvectors",
    )

    def side_bytes(self, width: int) -> int:
        """Return the bytes of one moment of this width, as it is kept."""
        if self.sketch == 0:
            return FLOAT * width * width
        tail = 1 if self.tail == "isotropic" else width
        return HALF * width * min(self.sketch, width) + FLOAT * tail


@frozen(kw_only=True)
class DriftGuardSpec(MomentsSpec):
    """drift-guard: a loss term on what the delta does to old inputs, weighed by old gradients."""

    strength: float = option(
        10.0, above(0), help="weight of the term; one value serves models of any size"
    )
    identity: float = option(
        0.5,
        between(0, 1),
        help="share of the outputs that count regardless of the old gradients",
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of C and G of every weight (inputs that layers share are kept once)."""
        return sum(
            self.side_bytes(out) + self.side_bytes(inside)
            for out, inside in shapes.values()
        )


@frozen(kw_only=True)
class CovarianceSpec(MomentsSpec):
    """covariance-merge: at the transition, take out of the delta what acts on old inputs."""

    strength: float = option(
        1.0, above(0), help="weight of the old inputs against the new ones"
    )
    ridge: float = option(
        1e-3, above(0), help="added to the diagonal, as a share of its mean"
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of C of every weight."""
        return sum(self.side_bytes(inside) for _, inside in shapes.values())


@frozen(kw_only=True)
class ReplaySpec(MethodSpec):
    """replay: a part of what earlier phases learnt from, trained on again."""

    share: float = option(
        0.05,
        between(0, 1),
        help="share of each earlier phase's examples that is kept; 0: none",
    )
    calibration_share: float = option(
        1.0, between(0, 1), help="share of the base's calibration text that is kept"
    )
    batch: int | None = option(
        None,
        at_least(1),
        help="kept examples in each step; default: as many as new ones",
    )
    strength: float = option(1.0, above(0), help="weight of their loss")
    source: str = option(
        "kept",
        one_of("kept", "generated"),
        help="real examples, or text that the model generates itself",
    )
    prompt_tokens: int = option(
        4, at_least(1), help="tokens of an example that a generated one begins with"
    )
    new_tokens: int = option(48, at_least(1), help="tokens that are generated")

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of ids and labels, for examples of 128 tokens."""
        return round(self.share * examples) * 128 * 8


@frozen(kw_only=True)
class EwcSpec(MethodSpec):
    """EWC: a quadratic penalty on each single weight, by its diagonal Fisher information."""

    strength: float = option(
        3000.0, above(0), help="weight of the penalty (λ of Kirkpatrick et al. 2017)"
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of one number for every weight."""
        return sum(FLOAT * out * inside for out, inside in shapes.values())


@frozen(kw_only=True)
class OloraSpec(MethodSpec):
    """O-LoRA: keeps a new adapter's A orthogonal to those of earlier phases."""

    strength: float = option(0.5, above(0), help="weight of Σ (A_old Aᵀ)²")
    rank: int = option(8, at_least(1), help="rank that `mgk plan` reckons with")

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of A of every weight."""
        return sum(FLOAT * self.rank * inside for _, inside in shapes.values())


@frozen(kw_only=True)
class DesignedSpec(MomentsSpec):
    """InfLoRA-style: A is designed from new and old inputs and frozen; only B is trained."""

    strength: float = option(
        30.0, above(0), help="weight of the old inputs against the new ones"
    )
    ridge: float = option(
        1e-3, above(0), help="added to the diagonal, as a share of its mean"
    )
    freeze: bool = option(True, help="train B alone")

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of C of every weight."""
        return sum(self.side_bytes(inside) for _, inside in shapes.values())


@frozen(kw_only=True)
class DistilSpec(MethodSpec):
    """self-distillation: the base, adapters off, is the teacher."""

    strength: float = option(1.0, above(0), help="weight of the distance")
    on: str = option(
        "new",
        one_of("new", "calibration", "kept", "base"),
        help="what teacher and student look at; base: the first phase's calibration text, kept",
    )
    level: str = option(
        "outputs",
        one_of("outputs", "layers"),
        help="final outputs, or each adapted layer's own",
    )
    distance: str = option(
        "kl",
        one_of("kl", "squared"),
        help="of outputs: KL of their softmax, or squared error",
    )
    batch: int | None = option(
        None, at_least(1), help="examples in each step; default: as many as new ones"
    )
    share: float = option(
        0.05,
        between(0, 1),
        help="share of each earlier phase's examples kept, for on = kept",
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of ids and labels, for examples of 128 tokens."""
        return round(self.share * examples) * 128 * 8 if self.on == "kept" else 0

    @property
    def kept_share(self) -> float | None:
        """Share of each phase's examples that is kept, None for nothing; the base's calibration text is kept whole."""
        return {"kept": self.share, "base": 0.0}.get(self.on)


@frozen(kw_only=True)
class LedgerMergeSpec(MethodSpec):
    """A method that merges the deltas of all phases again, in the last phase."""

    scale: float = option(1.0, above(0), help="λ, the factor of the merged delta")
    rank: int = option(8, at_least(1), help="rank that `mgk plan` reckons with")

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of both factors of every delta."""
        return _factor_bytes(shapes, self.rank)


@frozen(kw_only=True)
class TaskArithmeticSpec(LedgerMergeSpec):
    """task-arithmetic: the sum of all phases' deltas, scaled once at the end."""

    scale: float = option(0.5, above(0), help="λ, the factor of the merged delta")


@frozen(kw_only=True)
class MagMaxSpec(LedgerMergeSpec):
    """magmax: of all phases' task vectors, in each place the one of largest magnitude."""

    scale: float = option(1.0, above(0), help="λ, the factor of the merged delta")


@frozen(kw_only=True)
class TiesSpec(LedgerMergeSpec):
    """ties: trim each phase's delta, elect a sign in each place, average those that have it."""

    keep: float = option(
        0.2, above(0), between(0, 1), help="share of each delta's numbers that is kept"
    )


@frozen(kw_only=True)
class OpcmSpec(MethodSpec):
    """opcm: at each transition, of the delta what is orthogonal to all that was merged before."""

    alpha: float = option(
        0.5,
        between(0, 1),
        help="share of the merged delta's singular values whose directions are protected",
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of the untouched weights, which are kept once, and of two numbers a phase."""
        return sum(FLOAT * out * inside for out, inside in shapes.values())


@frozen(kw_only=True)
class EllaSpec(MethodSpec):
    """ella: a penalty on new updates where the sum of all earlier ones is large."""

    strength: float = option(
        100.0, above(0), help="λ, weight of Σ ‖ΔW ⊙ W_past‖², in the weights' own units"
    )
    rank: int = option(8, at_least(1), help="rank that `mgk plan` reckons with")

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of both factors of every delta."""
        return _factor_bytes(shapes, self.rank)


@frozen(kw_only=True)
class CloraSpec(MethodSpec):
    """clora: random directions, drawn beforehand, that the delta is kept from reading and writing."""

    strength: float = option(1.0, above(0), help="λ, weight of the penalty")
    share: float = option(
        0.5,
        above(0),
        between(0, 1),
        help="k, the number of directions, as a share of each side's width",
    )


@frozen(kw_only=True)
class IntruderSpec(MethodSpec):
    """intruder-repair: at the transition, scale down leading directions that the weight did not have."""

    top: int = option(10, at_least(1), help="leading singular vectors looked at")
    threshold: float = option(
        0.5,
        above(0),
        between(0, 1),
        help="a vector whose largest cosine to the old ones is below this is an intruder",
    )
    scale: float = option(
        0.75, between(0, 1), help="λ, what is left of an intruder's singular value"
    )


@frozen(kw_only=True)
class NaiveSpec(MethodSpec):
    """naive: no protection against forgetting."""


@frozen(kw_only=True)
class CovarianceRecoverySpec(CovarianceSpec):
    """covariance: after a refusal, merge again with what acts on old inputs taken out."""

    strengths: tuple[float, ...] = option(
        (1.0, 10.0), help="weights of the old inputs, tried in this order"
    )

    def __attrs_post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(
                f"strengths: expected numbers above 0, got {list(self.strengths)}"
            )


@frozen(kw_only=True)
class AlarmSpec(MomentsSpec):
    """alarm: how far each layer drifts from what it did, without any data, during training."""

    limit: float = option(
        0.05,
        above(0),
        help="tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of a layer above which it is reported",
    )

    def kept_bytes(self, shapes: Shapes, examples: int = 0) -> int:
        """Return the bytes of C of every weight."""
        return sum(self.side_bytes(inside) for _, inside in shapes.values())


_PART = {"data", "batch_size", "batches"}


@frozen(kw_only=True)
class MixedSpec(Spec):
    """mixed: whole batches of several kinds of data in one order; train with batch_size = 1."""

    parts: dict[str, dict[str, Any]] = option(
        {},
        help="name = { data = {…}, batch_size, batches }: a row of this data is one such batch",
    )

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: expected at least one")
        for name, part in self.parts.items():
            counts = [part.get(key) for key in ("batch_size", "batches")]
            if set(part) != _PART or not all(type(n) is int and n > 0 for n in counts):
                raise ValueError(
                    f"parts.{name}: expected data, and batch_size and batches above 0"
                )


RETENTION: dict[str, type[MethodSpec]] = {
    "drift-guard": DriftGuardSpec,
    "covariance-merge": CovarianceSpec,
    "replay": ReplaySpec,
    "designed-a": DesignedSpec,
    "o-lora": OloraSpec,
    "ewc": EwcSpec,
    "self-distillation": DistilSpec,
    "task-arithmetic": TaskArithmeticSpec,
    "magmax": MagMaxSpec,
    "ties": TiesSpec,
    "opcm": OpcmSpec,
    "ella": EllaSpec,
    "clora": CloraSpec,
    "intruder-repair": IntruderSpec,
    "naive": NaiveSpec,
}
