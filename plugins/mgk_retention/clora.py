"""CLoRA: hold a part of the delta's null space at directions drawn beforehand (Lu et al. 2025, arXiv 2410.16801).

    λ / 2 · Σ ( ‖A P‖_F² + ‖Bᵀ Q‖_F² )

P (in, k) and Q (out, k) have orthonormal columns, drawn once at random. What a layer's input has along P then passes the delta
without effect, and the delta adds nothing along Q. It needs no data and keeps nothing: P and Q are a function of the weight's name.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_retention.deltas import live_pairs, matrices, pair_of
from mgk_retention.kept import Past
from mgk_retention.specs import CloraSpec


def directions(name: str, width: int, share: float) -> Tensor:
    """Return k = share · width orthonormal columns, (width, k): the same in every phase."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(seed)
    columns = max(1, round(share * width))
    drawn = torch.randn(width, columns, generator=generator)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return basis


def clora_term(ctx: PhaseContext, _past: Past, spec: CloraSpec) -> LossTerm | None:
    """Return the penalty over all weights that have factors; None where there are none."""
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made
    sides = {}
    for name in matrices(adapter):
        found = pair_of(adapter, name)
        if found is not None:
            inside, outside = found.a.shape[1], found.b.shape[0]
            p = directions(f"{name}/in", inside, spec.share).to(found.a)
            q = directions(f"{name}/out", outside, spec.share).to(found.b)
            sides[name] = p, q
    if not sides:
        return None
    pair = live_pairs(adapter)

    def term(_step: int) -> Tensor:
        found = []
        for name, (p, q) in sides.items():
            factors = pair(name)
            found.append((factors.a @ p).square().sum())
            found.append((factors.b.mT @ q).square().sum())
        return spec.strength / 2 * torch.stack(found).sum()

    return term
