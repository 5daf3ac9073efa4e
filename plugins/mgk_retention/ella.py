"""ELLA: keep new updates out of the places where earlier ones were large (Biswas et al. 2026, arXiv 2601.02232).

    L_ELLA = ‖ΔW ⊙ W_past‖_F²,   W_past = Σ_{s < t} ΔW_s

summed over the adapted weights and added to the loss with weight λ. Small places of W_past stay free, so that tasks may share
them. The paper keeps W_past as one matrix; here it is formed from the factors of the earlier phases' deltas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_retention.deltas import live_pairs, matrices, pair_of
from mgk_retention.kept import DELTAS, Past
from mgk_retention.specs import EllaSpec


def past_update(past: Past, weight: str) -> Tensor | None:
    """Return W_past of one weight, (out, in); None where no earlier phase changed it."""
    found = [
        kept[f"{DELTAS}{weight}/b"] @ kept[f"{DELTAS}{weight}/a"]
        for _, kept in past.files
        if f"{DELTAS}{weight}/a" in kept
    ]
    return torch.stack(found).sum(0).to(past.device) if found else None


def ella_term(ctx: PhaseContext, past: Past, spec: EllaSpec) -> LossTerm | None:
    """Return strength · Σ ‖ΔW ⊙ W_past‖²; None in the first phase, which has no past."""
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made
    energy = {}
    for name in matrices(adapter):
        update = past_update(past, name)
        if update is not None and pair_of(adapter, name) is not None:
            energy[name] = update.square()
    if not energy:
        return None
    pair = live_pairs(adapter)

    def term(_step: int) -> Tensor:
        found = []
        for name, old in energy.items():
            p = pair(name)
            found.append((old * (p.scale * (p.b @ p.a)).square()).sum())
        return spec.strength * torch.stack(found).sum()

    return term
