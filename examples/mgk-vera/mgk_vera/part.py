"""What sits on one linear module, and the projections that all of them share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from mgk_core.contract.adapter import Factors
from mgk_core.model.inject import Part


class Projections(nn.Module):
    """The random A and B, made once for the largest target; every other one uses a corner of them.

    Buffers, since they are frozen; not persistent, since each part would save them again.
    """

    a: Tensor  # (rank, largest in)
    b: Tensor  # (largest out, rank)

    def __init__(self, rank: int, rows: int, cols: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("a", kaiming((rank, cols), generator), persistent=False)
        self.register_buffer("b", kaiming((rows, rank), generator), persistent=False)


def kaiming(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw from U(−√(6 / in), √(6 / in)) (He et al. 2015, arXiv 1502.01852, eq. 10; VeRA §3.2)."""
    bound = math.sqrt(6 / shape[1])
    return (torch.rand(shape, generator=generator) * 2 - 1) * bound


class VeraPart(Part):
    """output + b ∘ (d ∘ (x Aᵀ)) Bᵀ (Kopiczko et al. 2023, arXiv 2310.11454, eq. 2)."""

    def __init__(self, shared: Projections, weight: Tensor, d_initial: float) -> None:
        super().__init__()
        self.rows, self.cols = weight.shape
        self.shared = shared
        self.d = nn.Parameter(torch.full((shared.a.shape[0],), d_initial))
        self.b = nn.Parameter(torch.zeros(self.rows))

    def factors(self) -> Factors:
        """Return Λ_d A and Λ_b B: (rank, in) and (out, rank). The formula; all else follows."""
        a = self.d[:, None] * self.shared.a[:, : self.cols]
        b = self.b[:, None] * self.shared.b[: self.rows]
        return Factors(a, b, scale=1.0)

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: (..., in)   output: (..., out). Faster than a dense delta for each call."""
        x = args[0].to(self.d.dtype)
        hidden = F.linear(x, self.shared.a[:, : self.cols]) * self.d
        delta = F.linear(hidden, self.shared.b[: self.rows]) * self.b
        return (output + delta).to(output.dtype)
