"""Second moments of a layer's inputs (C) and of the loss's gradients at its outputs (G).

Either the whole matrix (`Dense`), or top eigenvectors plus a diagonal tail (`Sketch`). Both answer
the same few questions, batch dimensions first, so that the methods are written once and run on a
stack of layers at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from attrs import frozen
from torch import Tensor


class Moment(Protocol):
    """A symmetric positive semi-definite matrix M, (..., d, d), in whatever form."""

    @property
    def width(self) -> int:
        """Its side d."""

    def right(self, x: Tensor) -> Tensor:
        """Return x @ M. x: (..., n, d)."""

    def trace(self) -> Tensor:
        """Return tr M, (...)."""

    def dense(self) -> Tensor:
        """Return M itself, (..., d, d)."""

    def scaled(self, factor: Tensor | float) -> Moment:
        """Return factor · M. factor: a number, or (...) with one for each matrix."""

    def plus_identity(self, amount: float) -> Moment:
        """Return M + amount · I."""


@frozen(eq=False)
class Dense:
    """The matrix itself: (..., d, d)."""

    matrix: Tensor

    @property
    def width(self) -> int:
        """Its side d."""
        return self.matrix.shape[-1]

    def right(self, x: Tensor) -> Tensor:
        """Return x @ M. x: (..., n, d)."""
        return x @ self.matrix

    def trace(self) -> Tensor:
        """Return tr M, (...)."""
        return self.matrix.diagonal(dim1=-2, dim2=-1).sum(-1)

    def dense(self) -> Tensor:
        """Return M itself, (..., d, d)."""
        return self.matrix

    def scaled(self, factor: Tensor | float) -> Dense:
        """Return factor · M."""
        return Dense(self.matrix * _expand(factor, 2))

    def plus_identity(self, amount: float) -> Dense:
        """Return M + amount · I."""
        eye = torch.eye(self.width, dtype=self.matrix.dtype, device=self.matrix.device)
        return Dense(self.matrix + amount * eye)


@frozen(eq=False)
class Sketch:
    """``V Vᵀ + diag(tail)``. factor: V, (..., d, k)   tail: (..., d), not negative."""

    factor: Tensor
    tail: Tensor

    @property
    def width(self) -> int:
        """Its side d."""
        return self.tail.shape[-1]

    def right(self, x: Tensor) -> Tensor:
        """Return x @ M at 4ndk operations instead of 2nd². x: (..., n, d)."""
        return (x @ self.factor) @ self.factor.mT + x * self.tail.unsqueeze(-2)

    def trace(self) -> Tensor:
        """Return tr M, (...)."""
        return self.factor.square().sum((-2, -1)) + self.tail.sum(-1)

    def dense(self) -> Tensor:
        """Return M itself, (..., d, d)."""
        return self.factor @ self.factor.mT + torch.diag_embed(self.tail)

    def scaled(self, factor: Tensor | float) -> Sketch:
        """Return factor · M."""
        root = factor**0.5
        return Sketch(self.factor * _expand(root, 2), self.tail * _expand(factor, 1))

    def plus_identity(self, amount: float) -> Sketch:
        """Return M + amount · I."""
        return Sketch(self.factor, self.tail + amount)


def _expand(factor: Tensor | float, dims: int) -> Tensor | float:
    return factor[(..., *[None] * dims)] if isinstance(factor, Tensor) else factor


def sketched(matrix: Tensor, k: int, tail: str) -> Sketch:
    """Keep the top k eigenvectors of one matrix, and of the rest what ``tail`` names.

    matrix: (d, d). tail ``isotropic``: the mean of the other eigenvalues in every other direction;
    ``diagonal``: the other eigenvectors' own diagonal. Trace and top are kept exactly by both.
    """
    values, vectors = torch.linalg.eigh(matrix)
    top = values[-k:].clamp(min=0) if k else values[:0]
    return with_tail(vectors[:, values.shape[0] - k :], top, matrix.diagonal(), tail)


def with_tail(vectors: Tensor, values: Tensor, diagonal: Tensor, tail: str) -> Sketch:
    """Make a sketch of orthonormal eigenvectors and of the whole matrix's diagonal.

    vectors: (d, k)   values: (k,)   diagonal: (d,). With an isotropic tail τ, M = U (Λ − τ) Uᵀ + τ I,
    for which Λ ≥ τ is needed: smaller eigenvalues are dropped into the tail.
    """
    if tail == "diagonal":
        factor = vectors * values.sqrt()
        return Sketch(factor, (diagonal - factor.square().sum(-1)).clamp(min=0))
    d, k = vectors.shape
    rest = (diagonal.sum() - values.sum()).clamp(min=0)
    level = rest / (d - k) if d > k else torch.zeros_like(rest)
    factor = vectors * (values - level).clamp(min=0).sqrt()
    return Sketch(factor, level.expand(d).clone())


def compressed(sketch: Sketch, k: int, tail: str) -> Sketch:
    """Reduce one sketch's factor to k columns by its own singular vectors; the rest joins the tail.

    An isotropic tail stays isotropic. Costs 2 d m² for m columns; nothing of size (d, d) is made.
    """
    if sketch.factor.shape[-1] <= k:
        return sketch
    values, vectors = torch.linalg.eigh(sketch.factor.mT @ sketch.factor)
    keep, drop = vectors[:, -k:], vectors[:, :-k]
    factor, lost = sketch.factor @ keep, (sketch.factor @ drop).square().sum(-1)
    if tail == "diagonal":
        return Sketch(factor, sketch.tail + lost)
    d = sketch.width
    level = lost.sum() / (d - k) if d > k else lost.sum()
    # The level now also covers the kept directions, which must not gain by it.
    size = values[-k:].clamp(min=torch.finfo(values.dtype).tiny)
    shrink = ((size - level).clamp(min=0) / size).sqrt()
    return Sketch(factor * shrink, sketch.tail + level)


def total(moments: Sequence[Moment], k: int | None, tail: str) -> Moment:
    """Return the sum of matrices of one width; k: most columns a sketch may have, None: no limit.

    One dense matrix among them makes the sum dense.
    """
    sketches = [m for m in moments if isinstance(m, Sketch)]
    if len(sketches) < len(moments):
        return Dense(torch.stack([m.dense() for m in moments]).sum(0))
    factor = torch.cat([s.factor for s in sketches], dim=-1)
    whole = Sketch(factor, torch.stack([s.tail for s in sketches]).sum(0))
    return whole if k is None else compressed(whole, k, tail)


def stacked(moments: Sequence[Moment]) -> Moment:
    """Put matrices of one width and one form behind each other, (L, d, …). Sketches are padded with
    zero columns to the widest."""
    if all(isinstance(m, Dense) for m in moments):
        return Dense(torch.stack([m.dense() for m in moments]))
    sketches = [m for m in moments if isinstance(m, Sketch)]
    if len(sketches) < len(moments):
        raise TypeError(
            "a stack needs matrices of one form; got dense ones and sketches"
        )
    wide = max(s.factor.shape[-1] for s in sketches)
    padded = [
        torch.nn.functional.pad(s.factor, (0, wide - s.factor.shape[-1]))
        for s in sketches
    ]
    return Sketch(torch.stack(padded), torch.stack([s.tail for s in sketches]))
