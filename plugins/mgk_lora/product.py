"""The low-rank product on a CPU: the same sums, in the layouts that BLAS multiplies fast.

A product with a side of 8 is all memory traffic, and a matrix library's time for it depends on which
side is contiguous: the gradient of B, taken as autograd takes it, costs five times what it costs
transposed. On other devices, and wherever dtypes differ, autograd's own way stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL = 1 << 16
"""Entries of the output below which the call itself costs more than its layout."""


def fits(output: Tensor, x: Tensor, a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether `add` may be used and is worth it."""
    return (
        output.numel() >= SMALL
        and output.device.type == "cpu"
        and a is not None
        and b is not None
        and output.dtype == x.dtype == a.dtype == b.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def add(output: Tensor, x: Tensor, a: Any, b: Any, scale: float) -> Tensor:
    """output + scale · (x Aᵀ) Bᵀ. x: (..., in)   output: (..., out)   a: (rank, in)   b: (out, rank)."""
    result: Tensor = _Add.apply(output, x, a, b, scale)  # type: ignore[no-untyped-call]
    return result


class _Add(torch.autograd.Function):
    """With H = x Aᵀ and g = ∂L/∂out: ∂L/∂B = s gᵀH, ∂L/∂H = s g B, ∂L/∂A = (∂L/∂H)ᵀ x, ∂L/∂x = (∂L/∂H) A."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        hidden = a @ x.reshape(-1, x.shape[-1]).t()  # (rank, N)
        ctx.save_for_backward(x, a, b, hidden)
        ctx.scale = scale
        flat = output.reshape(-1, output.shape[-1])
        return torch.addmm(flat, hidden.t(), b.t(), alpha=scale).view(output.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, hidden = ctx.saved_tensors
        _, of_x, of_a, of_b, _ = ctx.needs_input_grad
        g = grads[0].reshape(-1, grads[0].shape[-1])  # (N, out)
        of_hidden = (
            (b.t() @ g.t()).mul_(ctx.scale) if of_x or of_a else None
        )  # (rank, N)
        return (
            grads[0],
            (of_hidden.t() @ a).view(x.shape)
            if of_x and of_hidden is not None
            else None,
            of_hidden @ x.reshape(-1, x.shape[-1])
            if of_a and of_hidden is not None
            else None,
            (hidden @ g).mul_(ctx.scale).t().contiguous() if of_b else None,
            None,
        )
