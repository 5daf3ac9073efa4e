"""covariance-merge: of a delta, keep what acts on new inputs and take out what acts on old ones.

    A* = A · C_new (C_new + λ C_old + ρ I)⁻¹

is the A that minimises ‖(A* − A) X_new‖² + λ ‖A* X_old‖² + ρ ‖A*‖². Of the RegMean family (Jin et
al. 2023, arXiv 2212.09849). It multiplies on the inputs' side, so factors in, factors out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import Proposal, Recovery
from mgk_retention.collect import old_batches, visit
from mgk_retention.deltas import matrices
from mgk_retention.kept import INPUTS, Past, unpacked
from mgk_retention.moments import Dense, Moment, Sketch, total
from mgk_retention.needs import Form, Needs
from mgk_retention.specs import CovarianceRecoverySpec, CovarianceSpec


@frozen(eq=False)
class Damping:
    """x ↦ x · C_new (C_new + λ C_old + ρ I)⁻¹ for one weight, prepared in float64.

    numerator: C_new. Whole matrices: ``inverse`` is (C_new + …)⁻¹. Sketches: the sum is
    V Vᵀ + D, and by Woodbury x S⁻¹ = y − y V K Vᵀ D⁻¹ with y = x D⁻¹, K = (I + Vᵀ D⁻¹ V)⁻¹.
    """

    numerator: Moment
    inverse: Tensor | None
    factor: Tensor | None = None
    diagonal: Tensor | None = None
    core: Tensor | None = None

    def right(self, x: Tensor) -> Tensor:
        """Apply to rows. x: (n, in), any dtype; returns x's dtype."""
        wide = self.numerator.right(x.double())
        if self.inverse is not None:
            return (wide @ self.inverse).to(x.dtype)
        assert self.diagonal is not None  # noqa: S101 - without an inverse all three are there
        assert self.factor is not None  # noqa: S101
        assert self.core is not None  # noqa: S101
        y = wide / self.diagonal
        return (y - (y @ self.factor) @ self.core @ self.factor.mT / self.diagonal).to(
            x.dtype
        )


def damping(new: Moment, old: Moment, strength: float, ridge: float) -> Damping:
    """Prepare the map of one weight. ridge: ρ as a share of the mean of the sum's diagonal."""
    new, old = _double(new), _double(old)
    whole = total([new, old.scaled(strength)], None, "diagonal")
    whole = whole.plus_identity(ridge * float(whole.trace()) / whole.width)
    if isinstance(whole, Sketch):
        scaled = whole.factor / whole.tail[:, None]  # D⁻¹ V
        eye = torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device)
        core = torch.linalg.inv(eye + whole.factor.mT @ scaled)
        return Damping(new, None, whole.factor, whole.tail, core)
    lower = torch.linalg.cholesky(whole.dense())
    return Damping(new, torch.cholesky_inverse(lower))


def _double(moment: Moment) -> Moment:
    if isinstance(moment, Sketch):
        return Sketch(moment.factor.double(), moment.tail.double())
    return Dense(moment.dense().double())


@frozen(eq=False)
class CovarianceTransform:
    """The maps of all weights as a transform of a proposal. Weights without statistics pass."""

    name: str
    maps: Mapping[str, Damping]

    def right(self, weight: str, a: Tensor) -> Tensor:
        """Return the damped factor. a: (rank, in)."""
        found = self.maps.get(weight)
        return a if found is None else found.right(a)

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return the damped delta. delta: (out, in), or rows of it."""
        return self.right(weight, delta)


def transform(
    ctx: PhaseContext, past: Past, spec: CovarianceSpec
) -> CovarianceTransform:
    """Look at the phase's own inputs and prepare the maps of all weights that have old statistics."""
    assert ctx.adapter is not None  # noqa: S101 - a proposal has one
    form = Form(spec.sketch or None, spec.tail)
    needs = Needs(
        inputs=form,
        outputs=None,
        fisher=False,
        factors=False,
        replay=None,
        max_tokens=spec.max_tokens,
    )
    fresh = visit(ctx, needs, old_batches(ctx), live=True).tensors()
    maps = {}
    for name in matrices(ctx.adapter):
        new = unpacked(fresh, INPUTS, name, ctx.device)
        old = past.total(INPUTS, name, spec.sketch, spec.tail)
        if new is not None and old is not None:
            maps[name] = damping(new, old, spec.strength, spec.ridge)
    return CovarianceTransform(
        f"covariance(strength={spec.strength:g}, ridge={spec.ridge:g})", maps
    )


def with_transform(
    ctx: PhaseContext, proposal: Proposal, spec: CovarianceSpec
) -> Proposal:
    """Return the proposal with the transform behind those that it has; as it is where nothing was kept."""
    made = transform(ctx, Past(ctx.history, ctx.device), spec)
    if not made.maps:
        ctx.notes.append(
            "covariance-merge: no statistics of the base or of an earlier phase; merged as trained"
        )
        return proposal
    return evolve(proposal, transforms=(*proposal.transforms, made))


def recovery(
    ctx: PhaseContext, tried: Sequence[Recovery], spec: CovarianceRecoverySpec
) -> Recovery | None:
    """Offer the merge with the next strength; None after the last, or where nothing was kept."""
    done = sum(r.method == spec.type for r in tried)
    if done >= len(spec.strengths) or not ctx.history:
        return None
    proposal = with_transform(
        ctx, Proposal(), evolve(spec, strength=spec.strengths[done])
    )
    if not proposal.transforms:
        return None
    evidence = {"strength": spec.strengths[done], "ridge": spec.ridge}
    return Recovery("propose", spec.type, proposal=proposal, evidence=evidence)
