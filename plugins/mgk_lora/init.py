"""How A and B begin. Random numbers are drawn on the CPU in fp32, so that every device begins alike."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.errors import InputError
from mgk_lora.kinds import Candidate, weight_is_dense
from mgk_lora.spec import OF_INPUTS, OF_WEIGHTS, RESIDUAL, LoraSpec


@frozen(eq=False)
class Start:
    """A and B at the start; a0, b0: what is subtracted where B is not zero, so that the base stays untouched."""

    a: Tensor
    b: Tensor
    a0: Tensor | None = None
    b0: Tensor | None = None


def start(candidate: Candidate, spec: LoraSpec, rank: int, scale: float) -> Start:
    """Return the first factors of one candidate, fp32 (float64 for a float64 base)."""
    layout = candidate.layout
    if spec.init in OF_WEIGHTS:
        return _of_weight(candidate, rank, scale, least=spec.init == "milora")
    a = torch.empty(layout.a_shape(rank))
    if spec.init == "gaussian" or spec.init in OF_INPUTS:
        a.normal_(std=spec.init_std)
    elif spec.init == "kaiming":
        # nn.Linear's own: kaiming_uniform with a = sqrt(5), that is U(−1/√in, 1/√in)
        bound = 1 / math.sqrt(layout.cols)
        a.uniform_(-bound, bound)
    else:
        for matrix in a if layout.batched else [a]:
            torch.nn.init.orthogonal_(matrix)
    b = torch.zeros(layout.b_shape(rank))
    if spec.init in RESIDUAL:  # its factors are set once the inputs are known
        return Start(a, b, a.clone(), b.clone())
    return Start(a, b)


def _of_weight(candidate: Candidate, rank: int, scale: float, *, least: bool) -> Start:
    """Singular vectors of W: the largest, PiSSA, or the ``least``, MiLoRA.

    PiSSA: Meng et al. 2024, arXiv 2404.02948, eq. 2-4. MiLoRA: Wang et al. 2024, arXiv 2406.09044,
    eq. 5-6. With W = U S Vᵀ: scale · B₀A₀ = U_r S_r V_rᵀ, B₀ = U_r √(S_r / scale); the delta is
    scale · (BA − B₀A₀), zero at the start.
    """
    matrix = dense_matrix(candidate)
    a, b = factors_of(matrix, rank, scale, least=least)
    if not candidate.layout.batched:
        a, b = a[0], b[0]
    return Start(a.contiguous(), b.contiguous(), a.clone(), b.clone())


def factors_of(
    matrix: Tensor, rank: int, scale: float, *, least: bool
) -> tuple[Tensor, Tensor]:
    """Return (A, B) with scale · B A = the ``rank`` largest or least singular parts. matrix: (blocks, out, in)."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    part = slice(s.shape[-1] - rank, None) if least else slice(None, rank)
    root = (s[:, part] / scale).sqrt()
    return root[:, :, None] * vh[:, part], u[:, :, part] * root[:, None, :]


def dense_matrix(candidate: Candidate) -> Tensor:
    """Return the weight as (blocks, out, in), fp32 (float64 for a float64 base)."""
    parameter, layout = candidate.parameter, candidate.layout
    if not weight_is_dense(parameter):
        raise InputError(
            f"target {candidate.name}: this init decomposes the weight, so it needs a base of plain numbers, not a"
            " quantized one; set init = 'gaussian'"
        )
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    weight = parameter.detach().to(dtype)
    if layout.transposed:
        return weight.t()[None]
    return weight.reshape(layout.blocks, layout.rows, layout.cols)
