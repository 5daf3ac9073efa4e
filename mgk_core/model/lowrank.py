"""Low-rank deltas as they are stored: the one place that knows transposes, groups and batches.

A weight of any shape is seen as rows of its last matrix: ``weight.reshape(-1, cols)``. Linear
weights are (out, in), transposed ones (in, out), a convolution's (out, in/groups · kernel) in
``groups`` blocks of rows, a stack of experts (experts · rows, cols) in ``experts`` blocks.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Factors, Target

_FEW = 16


@frozen(eq=False)
class StoredDelta:
    """A delta in its weight's stored orientation, ``scale · left @ right``, block by block.

    left: (blocks, rows, k)   right: (blocks, k, cols). The flat delta is (blocks · rows, cols).
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def rows(self) -> int:
        """Number of flat rows."""
        return self.left.shape[0] * self.left.shape[1]

    def add_(self, out: Tensor, start: int) -> Tensor:
        """Add flat rows ``start … start + len(out)`` to ``out`` in place. out: (n, cols), same dtype."""
        return self._onto(out, start, 1.0)

    def write_(self, out: Tensor, start: int) -> Tensor:
        """Overwrite ``out`` with flat rows ``start … start + len(out)``."""
        return self._onto(out, start, 0.0)

    def _onto(self, out: Tensor, start: int, beta: float) -> Tensor:
        per, at = self.left.shape[1], start
        stop = start + out.shape[0]
        while at < stop:
            block, first = divmod(at, per)
            last = min(per, first + stop - at)
            piece = out[at - start : at - start + last - first]
            self._product(piece, self.left[block, first:last], self.right[block], beta)
            at += last - first
        return out

    def _product(self, out: Tensor, left: Tensor, right: Tensor, beta: float) -> None:
        """Scale out by ``beta`` and add ``scale · left @ right``.

        In a CPU's cache, rows a multiple of 4 KB apart fall on the same few places: with more than
        16 of them and a low rank, the product took twice as long (measured with MKL).
        """
        rows, cols = out.shape
        even = (
            rows - rows % _FEW
            if out.is_cpu and cols % 1024 == 0 and left.shape[1] < _FEW
            else 0
        )
        if even:
            groups = out[:even].view(-1, _FEW, cols)
            batch = (
                left[:even].reshape(-1, _FEW, left.shape[1]),
                right.expand(len(groups), *right.shape),
            )
            groups.baddbmm_(*batch, beta=beta, alpha=self.scale)
        if even < rows:
            out[even:].addmm_(left[even:], right, beta=beta, alpha=self.scale)

    def dense(self) -> Tensor:
        """Return the whole flat delta, (blocks · rows, cols)."""
        return torch.bmm(self.left, self.right).mul_(self.scale).flatten(0, 1)


def folded(target: Target) -> bool:
    """Whether rows as stored are not rows of the (out, in) matrix."""
    return target.transposed or _stacked(target)


def as_matrix(tensor: Tensor, target: Target) -> Tensor:
    """View a weight or its delta as (out, in): what `Transform.delta` is given.

    Transposed weights are turned, kernels flattened, experts are stacked in rows.
    """
    if target.transposed:
        return tensor.t()
    return tensor.flatten(0, -2) if _stacked(target) else tensor.flatten(1)


def _stacked(target: Target) -> bool:
    """Whether a weight is a stack of matrices (experts), not a convolution's kernels."""
    convolution = nn.modules.conv._ConvNd  # noqa: SLF001 - the three have no other base
    return target.parameter.dim() == 3 and not isinstance(target.module, convolution)


def stored_delta(
    factors: Factors, *, transposed: bool, dtype: torch.dtype = torch.float32
) -> StoredDelta:
    """Bring factors into stored orientation; initial factors are subtracted, gradients are cut.

    factors: a (..., rank, in), b (..., out, rank), see `Factors`.
    """
    a, b = factors.a, factors.b
    if factors.a0 is not None and factors.b0 is not None:
        # BA − B₀A₀ = [B, −B₀] [A; A₀]
        a = torch.cat([a, factors.a0.to(a.dtype)], dim=-2)
        b = torch.cat([b, -factors.b0.to(b.dtype)], dim=-1)
    a, b = a.detach().to(dtype), b.detach().to(dtype)
    if a.dim() == 2:
        a, b = a[None], b[None]
    left, right = (a.transpose(1, 2), b.transpose(1, 2)) if transposed else (b, a)
    return StoredDelta(left, right, factors.scale)


def dense_delta(factors: Factors, weight: Tensor) -> Tensor:
    """Return ``scale · b @ a`` (less the initial factors') with its gradients, shaped as ``weight``.

    For weights in (out, ...) orientation. Computed in the wider of the two precisions.
    """
    dtype = torch.promote_types(factors.a.dtype, weight.dtype)
    delta = factors.b.to(dtype) @ factors.a.to(dtype)
    if factors.a0 is not None and factors.b0 is not None:
        delta = delta - factors.b0.to(dtype) @ factors.a0.to(dtype)
    return (factors.scale * delta).reshape(weight.shape)


__all__ = ["StoredDelta", "as_matrix", "dense_delta", "folded", "stored_delta"]
