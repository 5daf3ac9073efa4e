"""intruder-repair: scale down what a merge would add as new leading directions (Shuttleworth et al. 2025, arXiv 2410.21228).

    W* = W' + (λ − 1) Σ_j σ_j u_j v_jᵀ   over the intruders j of W' = W + ΔW

σ_j, u_j, v_j are the SVD of W'. One of its ``top`` leading left singular vectors is an intruder if its largest absolute cosine
to any left singular vector of W is below ``threshold``. PEFT's ``reduce_intruder_dimension`` does the same, and cuts the result
back to the adapter's rank; a merge needs no such cut.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import evolve, frozen
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import Proposal
from mgk_core.contract.progress import activity, track
from mgk_retention.deltas import base_weight, dense_delta, matrices
from mgk_retention.specs import IntruderSpec


def intruders(u: Tensor, base: Tensor, top: int, threshold: float) -> Tensor:
    """Return the indices of the intruders. u, base: left singular vectors of W' and of W, columns."""
    nearest = (u[:, :top].mT @ base).abs().amax(1)
    return (nearest < threshold).nonzero()[:, 0]


def repaired(weight: Tensor, delta: Tensor, spec: IntruderSpec) -> tuple[Tensor, int]:
    """Return the delta to merge and how many intruders it has. weight, delta: (out, in)."""
    base = torch.linalg.svd(weight, full_matrices=False).U
    u, s, vh = torch.linalg.svd(weight + delta, full_matrices=False)
    found = intruders(u, base, spec.top, spec.threshold)
    part = (u[:, found] * s[found]) @ vh[found]
    return delta + (spec.scale - 1) * part, len(found)


@frozen(eq=False)
class IntruderTransform:
    """The repaired deltas by weight."""

    name: str
    deltas: Mapping[str, Tensor]

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return what to merge. delta: (out, in), or rows of it."""
        found = self.deltas.get(weight)
        if found is None:
            return delta
        return (found if rows is None else found[rows]).to(delta)


@torch.no_grad()
def with_repair(ctx: PhaseContext, proposal: Proposal, spec: IntruderSpec) -> Proposal:
    """Return the proposal with the transform.

    :raises InputError: another transform is proposed: intruders are those of the delta as it was trained
    """
    if proposal.transforms:
        raise InputError(
            f"{spec.type}: repairs the delta as it was trained and cannot follow {proposal.transforms[0].name};"
            " use one of the two"
        )
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - a proposal has one
    deltas, count = {}, 0
    targets = matrices(adapter)
    with activity("looking for intruders"):
        for name, target in track(list(targets.items())):
            weight, delta = base_weight(target), dense_delta(adapter, name, target)
            deltas[name], found = repaired(weight, delta, spec)
            count += found
    ctx.notes.append(
        f"{spec.type}: {count} intruder directions in {len(deltas)} weights scaled by {spec.scale:g}"
    )
    label = f"{spec.type}(scale={spec.scale:g}, threshold={spec.threshold:g}, top={spec.top})"
    return evolve(proposal, transforms=(IntruderTransform(label, deltas),))
