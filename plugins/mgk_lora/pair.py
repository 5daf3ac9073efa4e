"""The trainable factors of one weight's delta."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from mgk_core.contract.adapter import Factors
from mgk_core.model.lowrank import stored_delta
from mgk_lora.init import Start
from mgk_lora.kinds import Layout


class Pair(nn.Module):
    """A and B of one weight: ΔW = scale · B @ A (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    a: (rank, in) or (blocks, rank, in)   b: (out, rank) or (blocks, out, rank). a0, b0: the
    initial factors that PiSSA subtracts. bias: (out,), of the delta. magnitude: DoRA's trained
    norms m, W' = m · (W + ΔW) / ‖W + ΔW‖ (Liu et al. 2024, arXiv 2402.09353, eq. 5), the norm
    without a gradient (their section 4.3).
    """

    a: nn.Parameter
    b: nn.Parameter
    a0: Tensor | None
    b0: Tensor | None
    bias: nn.Parameter | None
    magnitude: nn.Parameter | None

    def __init__(
        self,
        layout: Layout,
        start: Start,
        scale: float,
        p: float,
        *,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.layout, self.scale, self.p = layout, scale, p
        self.a, self.b = (
            nn.Parameter(start.a.to(dtype)),
            nn.Parameter(start.b.to(dtype)),
        )
        self.register_buffer("a0", None if start.a0 is None else start.a0.to(dtype))
        self.register_buffer("b0", None if start.b0 is None else start.b0.to(dtype))
        own_bias = (
            nn.Parameter(torch.zeros(layout.rows * layout.blocks, dtype=dtype))
            if bias
            else None
        )
        self.register_parameter("bias", own_bias)
        self.register_parameter("magnitude", None)

    @property
    def factors(self) -> Factors:
        """The live factors; they carry gradients."""
        return Factors(self.a, self.b, self.scale, self.a0, self.b0)

    def drop(self, x: Tensor) -> Tensor:
        """Apply dropout while training."""
        return dropout(x, self.p) if self.p and self.training else x

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that makes this pair what it is."""
        return dict((*self.named_parameters(), *self.named_buffers()))

    def apply_to(self, weight: Tensor) -> Tensor:
        """Return what ``weight`` becomes, differentiable, in its own dtype. Costs a dense tensor."""
        return self._directed(self.summed(weight), None).to(weight.dtype)

    def summed(self, weight: Tensor) -> Tensor:
        """Return weight + ΔW, differentiable, in the wider of the two dtypes."""
        dense = self.b @ self.a
        if self.a0 is not None and self.b0 is not None:
            dense = dense - self.b0 @ self.a0
        return weight + self._shaped(dense * self.scale)

    def merged(self, weight: Tensor, rows: slice | None) -> Tensor:
        """Return what ``weight``, or its block ``rows``, becomes; no gradient. fp32 or float64."""
        delta = stored_delta(
            self.factors, transposed=self.layout.transposed, dtype=weight.dtype
        )
        flat = weight.clone(memory_format=torch.contiguous_format).reshape(
            -1, delta.right.shape[-1]
        )
        per_row = delta.rows // self.layout.shape[0]
        first = (rows.start or 0) * per_row if rows is not None else 0
        with torch.no_grad():
            return self._directed(delta.add_(flat, first).view(weight.shape), rows)

    def norms(self, weight: Tensor) -> Tensor:
        """‖row‖ of a stored weight over `Layout.norm_dims`, dimensions kept, fp32 or wider."""
        wide = (
            weight.detach()
            if weight.dtype == torch.float64
            else weight.detach().float()
        )
        norms: Tensor = torch.linalg.vector_norm(
            wide, dim=self.layout.norm_dims, keepdim=True
        )
        return norms

    def start_magnitude(self, weight: Tensor) -> None:
        """Initialise to the norms of the current weight, so that nothing changes yet."""
        self.magnitude = nn.Parameter(self.norms(weight).to(self.a.dtype))

    def _directed(self, summed: Tensor, rows: slice | None) -> Tensor:
        if self.magnitude is None:
            return summed
        magnitude = (
            self.magnitude
            if rows is None or self.magnitude.shape[0] == 1
            else self.magnitude[rows]
        )
        return magnitude / self.norms(summed) * summed

    def _shaped(self, dense: Tensor) -> Tensor:
        return dense.t() if self.layout.transposed else dense.reshape(self.layout.shape)
