"""How A and B begin. Random numbers are drawn on the CPU in fp32, so that every device begins alike."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.errors import InputError
from mgk_lora.kinds import Candidate, weight_is_dense
from mgk_lora.spec import LoraSpec


@frozen(eq=False)
class Start:
    """A and B at the start; a0, b0: what PiSSA subtracts, so that the base stays untouched."""

    a: Tensor
    b: Tensor
    a0: Tensor | None = None
    b0: Tensor | None = None


def start(candidate: Candidate, spec: LoraSpec, rank: int, scale: float) -> Start:
    """Return the first factors of one candidate, fp32 (float64 for a float64 base)."""
    layout = candidate.layout
    if spec.init == "pissa":
        return _pissa(candidate, rank, scale)
    a = torch.empty(layout.a_shape(rank))
    if spec.init == "gaussian":
        a.normal_(std=spec.init_std)
    elif spec.init == "kaiming":
        # nn.Linear's own: kaiming_uniform with a = sqrt(5), that is U(−1/√in, 1/√in)
        bound = 1 / math.sqrt(layout.cols)
        a.uniform_(-bound, bound)
    else:
        for matrix in a if layout.batched else [a]:
            torch.nn.init.orthogonal_(matrix)
    return Start(a, torch.zeros(layout.b_shape(rank)))


def _pissa(candidate: Candidate, rank: int, scale: float) -> Start:
    """Principal singular vectors of W (Meng et al. 2024, arXiv 2404.02948, eq. 2-4).

    scale · B₀A₀ = U_r S_r V_rᵀ; the delta is scale · (BA − B₀A₀), zero at the start.
    """
    parameter, layout = candidate.parameter, candidate.layout
    if not weight_is_dense(parameter):
        raise InputError(
            f"target {candidate.name}: init = 'pissa' needs a base of plain numbers, not a quantized one"
        )
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    weight = parameter.detach().to(dtype)
    matrix = (
        weight.reshape(layout.blocks, layout.rows, layout.cols)
        if not layout.transposed
        else weight.t()[None]
    )
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:, :rank] / scale).sqrt()
    b, a = u[:, :, :rank] * root[:, None, :], root[:, :, None] * vh[:, :rank]
    if not layout.batched:
        a, b = a[0], b[0]
    return Start(a.contiguous(), b.contiguous(), a.clone(), b.clone())
