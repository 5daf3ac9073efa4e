"""OPCM: continual merging by orthogonal projection and adaptive scaling (Tang et al. 2025, arXiv 2501.09522).

    τ_t' = (λ_{t−1} τ_{t−1}' + P(τ_t)) / λ_t,   W_t = W_0 + τ_t'

τ_t = θ_t − θ_0 is the task vector, τ' the merged one with SVD U Σ Vᵀ per weight, and P(X) = U Z Vᵀ, where Z is Uᵀ X V
without its diagonal (up to the rank of τ') and without its leading k × k block; k is the number of singular values whose sum stays within
the share α of them all. λ_t keeps ‖τ_t'‖ at the mean of ‖τ_1‖ … ‖τ_t‖ (all weights together), λ_1 = 1.

The paper fine-tunes every model from θ_0; here phase t starts from W_{t−1}, so that τ_t = τ_{t−1}' + Δ_t. The projection is
the same for both, since Uᵀ τ_{t−1}' V is diagonal: P(τ_t) = P(Δ_t).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import evolve, frozen
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import Proposal
from mgk_retention.deltas import base_weight, dense_delta, matrices
from mgk_retention.kept import OPCM, ORIGIN, Past
from mgk_retention.specs import OpcmSpec

NOTHING = 1e-4
"""Singular values below this share of the largest are rounding of the weights, not something that was merged."""


def projected(x: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """Return P(x) for the merged task vector of one weight. x, merged: (out, in)."""
    u, s, vh = torch.linalg.svd(merged, full_matrices=True)
    inner = u.mT @ x @ vh.mT
    # Where nothing was merged, singular vectors are arbitrary, and so would be what their diagonal takes away.
    rank = int((s > NOTHING * s[0]).sum())
    inner.diagonal()[:rank] = 0
    # The first place where the share is exceeded; 0 where nothing was merged yet.
    split = int((s.cumsum(0) > alpha * s.sum()).float().argmax())
    inner[:split, :split] = 0
    found: Tensor = u @ inner @ vh
    return found


@frozen(eq=False)
class OpcmTransform:
    """The deltas to merge, made for all weights together.

    state: λ_t and ‖τ_t‖, (2,). origin: the untouched weights, in the first phase; empty in the others.
    """

    name: str
    deltas: Mapping[str, Tensor]
    state: Tensor
    origin: Mapping[str, Tensor]

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return what to merge. delta: (out, in), or rows of it."""
        found = self.deltas.get(weight)
        if found is None:
            return delta
        return (found if rows is None else found[rows]).to(delta)


def merged_deltas(
    merged: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    states: Tensor,
    alpha: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return W_t − W_{t−1} by weight, and (λ_t, ‖τ_t‖).

    merged: τ_{t−1}'   fresh: Δ_t   states: (λ, ‖τ‖) of each earlier phase, (t − 1, 2).
    """
    norm = _norm({n: merged[n] + d for n, d in fresh.items()})
    if not len(states):
        return dict(fresh), torch.stack([torch.ones_like(norm), norm])
    before = states[-1, 0]
    summed = {
        n: before * merged[n] + projected(d, merged[n], alpha) for n, d in fresh.items()
    }
    target = torch.cat([states[:, 1], norm[None]]).mean()
    scale = _norm(summed) / target  # λ_t
    changes = {n: t / scale - merged[n] for n, t in summed.items()}
    return changes, torch.stack([scale, norm])


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()


@torch.no_grad()
def with_opcm(ctx: PhaseContext, proposal: Proposal, spec: OpcmSpec) -> Proposal:
    """Return the proposal with the transform.

    :raises InputError: another transform is proposed, or a weight that the first phase did not have
    """
    if proposal.transforms:
        raise InputError(
            f"opcm: replaces the delta as a whole and cannot follow {proposal.transforms[0].name}; use one of the two"
        )
    adapter, past = ctx.adapter, Past(ctx.history, ctx.device)
    assert adapter is not None  # noqa: S101 - a proposal has one
    states = [kept[OPCM] for _, kept in past.files if OPCM in kept]
    merged, fresh, origin = {}, {}, {}
    for name, target in matrices(adapter).items():
        weight = base_weight(target)
        first = past.tensors(ORIGIN, name)
        if states and not first:
            raise InputError(
                f"opcm: {name} is not among the targets of the first phase, so its untouched weight is unknown; give all"
                " phases the same targets"
            )
        if not states:
            origin[name] = weight.cpu().clone()
        merged[name] = weight.double() - (first[0] if first else weight).double()
        fresh[name] = dense_delta(adapter, name, target).double()
    table = torch.stack(states) if states else torch.zeros(0, 2)
    table = table.to(ctx.device).double()
    changes, state = merged_deltas(merged, fresh, table, spec.alpha)
    made = OpcmTransform(f"opcm(alpha={spec.alpha:g})", changes, state, origin)
    return evolve(proposal, transforms=(made,))


def kept_state(ctx: PhaseContext) -> dict[str, Tensor]:
    """Return what later phases need to know: λ_t, ‖τ_t‖, and of the first phase the untouched weights."""
    transforms = () if ctx.proposal is None else ctx.proposal.transforms
    found = [t for t in transforms if isinstance(t, OpcmTransform)]
    if not found:
        return {}
    weights = {ORIGIN + name: w for name, w in found[-1].origin.items()}
    return weights | {OPCM: found[-1].state.cpu()}
