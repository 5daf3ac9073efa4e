"""InfLoRA-style: choose A before training so that what it lets through is new, not old.

The rows of A are the r directions a that maximise aᵀ C_new a / aᵀ (C_new + λ C_old + ρ I) a: where new inputs
are large and old ones small. InfLoRA (Liang & Li 2024, arXiv 2404.00228) takes the top directions
of C_new after cutting out the old subspace; this is the same with a soft cut. With A frozen the
delta cannot leave that span, whatever the loss asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgk_core.contract.adapter import Adapter, LowRank
from mgk_core.contract.context import PhaseContext
from mgk_retention.collect import old_batches, visit
from mgk_retention.deltas import matrices
from mgk_retention.kept import INPUTS, Past, unpacked
from mgk_retention.moments import Moment
from mgk_retention.needs import Form, Needs
from mgk_retention.specs import DesignedSpec


def directions(
    new: Moment, old: Moment | None, rank: int, strength: float, ridge: float
) -> Tensor:
    """Return the top ``rank`` directions as rows of length 1, (rank, in)."""
    c = new.dense().double()
    s = c if old is None else c + strength * old.dense().double()
    s = s + ridge * s.diagonal().mean() * torch.eye(
        len(s), dtype=s.dtype, device=s.device
    )
    lower = torch.linalg.cholesky(s)
    half = torch.linalg.solve_triangular(lower, c, upper=False)
    whitened = torch.linalg.solve_triangular(lower, half.mT, upper=False)  # L⁻¹ C L⁻ᵀ
    vectors = (
        torch.linalg.eigh((whitened + whitened.mT) / 2).eigenvectors[:, -rank:].flip(1)
    )
    rows: Tensor = torch.linalg.solve_triangular(
        lower.mT, vectors, upper=True
    ).mT  # L⁻ᵀ v
    return torch.nn.functional.normalize(rows, dim=1)


@torch.no_grad()
def design(adapter: Adapter, ctx: PhaseContext, spec: DesignedSpec) -> list[str]:
    """Overwrite A where the adapter has factors and B is zero; returns the weights designed."""
    if not isinstance(adapter, LowRank):
        return []
    past = Past(ctx.history, ctx.device)
    form = Form(spec.sketch or None, spec.tail)
    needs = Needs(
        inputs=form,
        outputs=None,
        fisher=False,
        factors=False,
        replay=None,
        max_tokens=spec.max_tokens,
    )
    fresh = visit(ctx, needs, old_batches(ctx)).tensors()
    done = []
    for name in matrices(adapter):
        factors, new = adapter.factors(name), unpacked(fresh, INPUTS, name, ctx.device)
        if (
            factors is None
            or new is None
            or factors.a.dim() != 2
            or bool(factors.b.any())
        ):
            continue
        old = past.total(INPUTS, name, spec.sketch, spec.tail)
        rows = directions(new, old, factors.a.shape[0], spec.strength, spec.ridge)
        factors.a.copy_(_sized(rows, new))
        factors.a.requires_grad_(not spec.freeze)
        done.append(name)
    return done


def _sized(rows: Tensor, new: Moment) -> Tensor:
    """Scale rows so that A x has variance 1 / in for each, as after the usual initialisation on white inputs."""
    power = (
        (new.right(rows.float()) * rows.float())
        .sum(-1)
        .clamp(min=torch.finfo(torch.float32).tiny)
    )
    return rows.float() / (power * rows.shape[1]).sqrt()[:, None]
