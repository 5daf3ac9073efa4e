"""Merging the deltas of all phases again: task arithmetic, MagMax and TIES, at the last transition.

Phases are trained one after the other, each on the weights that the one before left: θ_t = θ_{t−1} + Δ_t. In the
last phase W_0 + λ M(Δ_1 … Δ_T) takes the place of W_0 + Σ Δ_t. M is defined in each method's function below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import Proposal
from mgk_retention.deltas import matrices, pair_of
from mgk_retention.kept import DELTAS, Past
from mgk_retention.specs import LedgerMergeSpec, MagMaxSpec, TiesSpec

Merge = Callable[[Tensor], Tensor]
"""All phases' deltas of a weight or of rows of it, (phases, …) → the merged one."""


@frozen(eq=False)
class LowRankDelta:
    """What one phase merged into one weight: b @ a, the scale in b. a: (r, in)   b: (out, r)."""

    a: Tensor
    b: Tensor

    def dense(self, rows: slice | None = None) -> Tensor:
        """Return the delta or rows of it, fp32."""
        return (self.b if rows is None else self.b[rows]) @ self.a


def task_arithmetic(deltas: Tensor) -> Tensor:
    """Σ_t Δ_t (Ilharco et al. 2023, arXiv 2212.04089: θ = θ_0 + λ Σ τ_t)."""
    return deltas.sum(0)


def magmax(deltas: Tensor) -> Tensor:
    """τ_t[i] with t = argmax_t |τ_t[i]|, τ_t = θ_t − θ_0 = Σ_{s ≤ t} Δ_s (Marczak et al. 2024, arXiv 2407.06322)."""
    vectors = deltas.cumsum(0)
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors.gather(0, largest)[0]


def ties(deltas: Tensor, thresholds: Tensor) -> Tensor:
    """Trim, elect, average (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

    τ̂_t keeps of Δ_t what is at least as large as its threshold; γ = sgn(Σ_t τ̂_t); the result is the
    mean over the t with sgn(τ̂_t) = γ, in each place. thresholds: (phases,).
    """
    shape = (-1, *[1] * (deltas.dim() - 1))
    trimmed = torch.where(deltas.abs() >= thresholds.view(shape), deltas, 0.0)
    elected = trimmed.sum(0).sign()
    agree = (trimmed.sign() == elected) & (trimmed != 0)
    count = agree.sum(0).clamp(min=1)
    return (trimmed * agree).sum(0) / count


@frozen(eq=False)
class LedgerTransform:
    """Δ_T ↦ λ M(Δ_1 … Δ_T) − Σ_{t < T} Δ_t, row by row. past: weight → the earlier phases' deltas."""

    name: str
    past: Mapping[str, Sequence[LowRankDelta]]
    merge: Merge
    scale: float

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return what to merge in the last phase. delta: (out, in), or rows of it."""
        earlier = [d.dense(rows).to(delta) for d in self.past.get(weight, ())]
        if not earlier:
            return delta
        whole = torch.stack([*earlier, delta])
        return self.scale * self.merge(whole) - whole[:-1].sum(0)


def kept_deltas(ctx: PhaseContext) -> dict[str, Tensor]:
    """Return the factors of what a phase has merged, for a statistics file."""
    adapter, scale = ctx.adapter, 1.0 if ctx.proposal is None else ctx.proposal.scale
    found: dict[str, Tensor] = {}
    if adapter is None:
        return found
    for name, delta in _own(adapter).items():
        found[f"{DELTAS}{name}/a"] = delta.a.cpu()
        found[f"{DELTAS}{name}/b"] = (scale * delta.b).cpu()
    return found


def _own(adapter: Adapter) -> dict[str, LowRankDelta]:
    """Return the adapter's deltas.

    :raises InputError: a weight's delta has no factors
    """
    found = {}
    for name in matrices(adapter):
        pair = pair_of(adapter, name)
        if pair is None:
            raise InputError(
                f"{name}: adapter {adapter.name!r} has no low-rank factors there, which merging all phases'"
                " deltas needs; use a LoRA adapter, or another method"
            )
        a, b = pair.a.detach().float().clone(), pair.b.detach().float()
        found[name] = LowRankDelta(a, pair.scale * b)
    return found


def past_deltas(past: Past, name: str) -> list[LowRankDelta]:
    """Return what each earlier phase merged into a weight, in order."""
    found = []
    for _, kept in past.files:
        if (a := kept.get(f"{DELTAS}{name}/a")) is not None:
            b = kept[f"{DELTAS}{name}/b"]
            found.append(LowRankDelta(a.to(past.device), b.to(past.device)))
    return found


def with_ledger_merge(
    ctx: PhaseContext, proposal: Proposal, spec: LedgerMergeSpec
) -> Proposal:
    """Return the proposal of the last phase with the transform; that of an earlier phase as it is.

    :raises InputError: another transform is proposed: the deltas are merged as they were trained
    """
    if ctx.index + 1 < len(ctx.config.phases):
        return proposal
    if proposal.transforms:
        raise InputError(
            f"{spec.type}: merges all phases' deltas as they were trained, and cannot follow"
            f" {proposal.transforms[0].name}; use one of the two"
        )
    assert ctx.adapter is not None  # noqa: S101 - a proposal has one
    past, own = Past(ctx.history, ctx.device), _own(ctx.adapter)
    earlier = {name: past_deltas(past, name) for name in own}
    merge: Merge = magmax if isinstance(spec, MagMaxSpec) else task_arithmetic
    label = f"{spec.type}(scale={spec.scale:g})"
    if isinstance(spec, TiesSpec):
        levels = thresholds({n: [*earlier[n], own[n]] for n in own}, spec.keep)
        label = f"{spec.type}(scale={spec.scale:g}, keep={spec.keep:g})"

        def merge(deltas: Tensor) -> Tensor:
            return ties(deltas, levels.to(deltas))

    made = LedgerTransform(label, earlier, merge, spec.scale)
    return evolve(proposal, transforms=(made,))


def thresholds(deltas: Mapping[str, Sequence[LowRankDelta]], keep: float) -> Tensor:
    """Return the magnitude that a number of each phase needs to be among its ``keep`` largest, (phases,).

    Over all weights of a phase together, as the authors do it.
    """
    levels = []
    for number in range(max(map(len, deltas.values()))):
        own = [d[number].dense().abs().flatten() for d in deltas.values()]
        sizes = torch.cat(own)
        drop = len(sizes) - max(1, round(keep * len(sizes)))
        levels.append(sizes.kthvalue(drop + 1).values)
    # Rows of a product are rounded by the block they are computed in: the last number to keep must not be lost.
    return torch.stack(levels) * (1 - 1e-5)
