"""How much a delta disturbs what a layer did before: the quadratic form of drift-guard.

    D(ΔW) = tr(Ĝ ΔW C ΔWᵀ) / (tr(Ĝ W C Wᵀ) / t),   Ĝ = ½ G / tr G + ½ I / d_out

C and G are the second moments of inputs and output gradients over the t old phases. Of the
K-FAC/EWC family (Martens & Grosse 2015, arXiv 1503.05671; Kirkpatrick et al. 2017, arXiv
1612.00796), made free of units: 1 means that the layer's outputs moved as far as they are long.
The share of I keeps outputs in place on which the loss no longer depends because the model is sure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgk_retention.moments import Moment


def normalised(g: Moment, identity: float = 0.5) -> Moment:
    """Ĝ = (1 − identity) · G / tr G + identity · I / d. Without any gradient: I / d."""
    trace = g.trace()
    share = torch.where(
        trace > 0, (1 - identity) / trace.clamp(min=torch.finfo(trace.dtype).tiny), 0.0
    )
    return g.scaled(share).plus_identity(identity / g.width)


def energy(c: Moment, g: Moment, weight: Tensor) -> Tensor:
    """tr(G W C Wᵀ), (...). weight: (..., out, in)   c: of width in   g: of width out."""
    return (c.right(weight) * g.right(weight.mT).mT).sum((-2, -1))


def factored_energy(c: Moment, g: Moment, a: Tensor, b: Tensor) -> Tensor:
    """tr(G (BA) C (BA)ᵀ) = tr((BᵀGB)(ACAᵀ)), (...). a: (..., r, in)   b: (..., out, r)."""
    return ((g.right(b.mT) @ b) * (c.right(a) @ a.mT)).sum((-2, -1))


def penalty(
    a: Tensor, b: Tensor, c: Moment, g: Moment, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_l weight_l · tr((B_lᵀ G_l B_l)(A_l C_l A_lᵀ)), and its gradients by A and by B.

    a: (L, r, in)   b: (L, out, r)   weight: (L,)   returns: (), like a, like b. AC and GB serve value
    and gradients, so that it all costs one product with C and one with G per layer, where autograd
    would take two of each.
    """
    ac, gb = c.right(a), g.right(b.mT)  # (L, r, in), (L, r, out)
    inner, outer = ac @ a.mT, gb @ b  # (L, r, r) each, symmetric
    value = torch.linalg.vecdot((inner * outer).sum((-2, -1)), weight)
    double = (2 * weight)[:, None, None]
    return value, (double * outer) @ ac, ((double * inner) @ gb).mT
