"""O-LoRA and EWC, for comparison: penalties from the literature."""

from __future__ import annotations

import torch
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_retention.deltas import dense_delta, live_pairs, matrices, pair_of
from mgk_retention.kept import FACTORS, FISHER, Past
from mgk_retention.specs import EwcSpec, OloraSpec


def olora_term(ctx: PhaseContext, past: Past, spec: OloraSpec) -> LossTerm | None:
    """strength · Σ_l Σ_old ‖A_old A_lᵀ‖² (Wang et al. 2023, arXiv 2310.14152, eq. 8)."""
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made
    old = {
        n: torch.cat(found)
        for n in matrices(adapter)
        if (found := past.tensors(FACTORS, n))
    }
    names, pair = (
        [n for n in old if pair_of(adapter, n) is not None],
        live_pairs(adapter),
    )
    if not names:
        return None

    def term(_step: int) -> Tensor:
        return (
            spec.strength
            * torch.stack([(old[n] @ pair(n).a.mT).square().sum() for n in names]).sum()
        )

    return term


def ewc_term(ctx: PhaseContext, past: Past, spec: EwcSpec) -> LossTerm | None:
    """strength / 2 · Σ F ΔW² (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3).

    F is the diagonal empirical Fisher information, summed over the old phases: the mean over
    positions of the squared gradient, which for one position is its gradient's square times its
    input's. Each phase starts from ΔW = 0, so the penalty is around the merged base.
    """
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made
    targets = matrices(adapter)
    fisher = {
        n: torch.stack(found).sum(0)
        for n in targets
        if (found := past.tensors(FISHER, n))
    }
    if not fisher:
        return None

    factored, pair = (
        {n for n in fisher if pair_of(adapter, n) is not None},
        live_pairs(adapter),
    )

    def delta(name: str) -> Tensor:
        if name not in factored:
            return dense_delta(adapter, name, targets[name])
        return pair(name).scale * (pair(name).b @ pair(name).a)

    def term(_step: int) -> Tensor:
        return (
            spec.strength
            / 2
            * torch.stack(
                [(f * delta(n).square()).sum() for n, f in fisher.items()]
            ).sum()
        )

    return term
