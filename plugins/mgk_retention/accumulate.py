"""Adding up second moments batch by batch: whole, in a random projection, or as counts.

The projection (Nyström) keeps Y = M Ω for a fixed random Ω (d, m) and the exact diagonal of M. It
is linear in the data, so nothing is decided before the last batch, costs 4 n d m operations for n
positions, and needs m·d numbers instead of d².
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mgk_retention.moments import Dense, Moment, Sketch, sketched, with_tail


class Accumulator(Protocol):
    """Takes rows and ends as a moment."""

    positions: int

    def add(self, rows: Tensor) -> None:
        """Add rowsᵀ rows. rows: (n, d), or (n, 1) of integers where the inputs are one-hot."""

    def power(self) -> Tensor:
        """Return the sum's trace, (): not finite where any row was not."""

    def mean(self) -> Moment:
        """Return the sum over what was seen, divided by the number of rows."""


class Whole:
    """Σ xᵀx as a matrix; ``k`` eigenvectors of it are kept in the end, all of it where None."""

    def __init__(
        self, width: int, k: int | None, tail: str, device: torch.device
    ) -> None:
        self.matrix = torch.zeros(width, width, device=device)
        self.k, self.tail, self.positions = k, tail, 0

    def add(self, rows: Tensor) -> None:
        """Add rowsᵀ rows. rows: (n, d)."""
        x = rows.float()
        self.matrix.addmm_(x.mT, x)
        self.positions += x.shape[0]

    def power(self) -> Tensor:
        """Return the sum's trace, ()."""
        return self.matrix.trace()

    def mean(self) -> Moment:
        """Return the mean over rows."""
        matrix = self.matrix / max(self.positions, 1)
        return Dense(matrix) if self.k is None else sketched(matrix, self.k, self.tail)


class Projected:
    """Σ xᵀx Ω and Σ x²; ends as a sketch of k eigenvectors."""

    def __init__(self, width: int, k: int, tail: str, device: torch.device) -> None:
        self.test = test_matrix(width, columns(k)).to(device)
        self.image = torch.zeros_like(self.test)
        self.squares = torch.zeros(width, device=device)
        self.k, self.tail, self.positions = k, tail, 0

    def add(self, rows: Tensor) -> None:
        """Add rowsᵀ (rows Ω) and the rows' squares. rows: (n, d)."""
        x = rows.float()
        self.image.addmm_(x.mT, x @ self.test)
        self.squares += x.square().sum(0)
        self.positions += x.shape[0]

    def power(self) -> Tensor:
        """Return the sum's trace, ()."""
        return self.squares.sum()

    def mean(self) -> Moment:
        """Return the mean over rows, as top eigenvectors and tail."""
        n = max(self.positions, 1)
        values, vectors = nystrom(self.image / n, self.test)
        return with_tail(
            vectors[:, : self.k], values[: self.k], self.squares / n, self.tail
        )


class Counts:
    """One-hot inputs (an embedding's ids): the moment is the diagonal of their frequencies."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.counts, self.positions = torch.zeros(width, device=device), 0

    def add(self, rows: Tensor) -> None:
        """Count ids. rows: (n, 1), integers below the width."""
        ids = rows.reshape(-1)
        self.counts += torch.bincount(ids, minlength=self.counts.shape[0]).to(
            self.counts
        )
        self.positions += ids.shape[0]

    def power(self) -> Tensor:
        """Return the sum's trace, ()."""
        return self.counts.sum()

    def mean(self) -> Moment:
        """Return the frequencies on the diagonal; no factor."""
        return Sketch(
            self.counts.new_zeros(self.counts.shape[0], 0),
            self.counts / max(self.positions, 1),
        )


def columns(k: int) -> int:
    """Columns of Ω for k wanted eigenvectors: twice as many and some, as Tropp et al. advise."""
    return 2 * k + 16


def make_accumulator(
    width: int, k: int | None, tail: str, device: torch.device
) -> Accumulator:
    """Choose: the whole matrix where all of it is wanted or it is small anyway, else the projection.

    Below four times the projection's columns an eigendecomposition of the whole costs less time
    than it saves memory.
    """
    if k is None or width <= 4 * columns(k):
        return Whole(width, None if k is None else min(k, width), tail, device)
    return Projected(width, k, tail, device)


_made: dict[tuple[int, int], Tensor] = {}


def test_matrix(width: int, m: int) -> Tensor:
    """Return Ω, (width, m), orthonormal columns: the same for every layer of a width, and every run."""
    if (width, m) not in _made:
        generator = torch.Generator().manual_seed(width * 8191 + m)
        _made[width, m] = torch.linalg.qr(
            torch.randn(width, m, generator=generator)
        ).Q.contiguous()
    return _made[width, m]


def nystrom(image: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (m,), falling, and eigenvectors (d, m) of Y (ΩᵀY)⁺ Yᵀ ⪯ M.

    image: Y = M Ω   test: Ω with orthonormal columns. Tropp, Yurtsever, Udell & Cevher 2017 (arXiv
    1706.05736), algorithm 3: M is shifted by ν ≈ eps ‖Y‖ √d before and back afterwards. The core's
    root is taken by eigenvalues, held above ν, so that rounding in Y cannot make it fail.
    """
    wide, omega = image.double(), test.double()
    shift = (
        torch.finfo(image.dtype).eps
        * torch.linalg.matrix_norm(wide)
        * image.shape[0] ** 0.5
    )
    if shift == 0:
        return image.new_zeros(image.shape[1]), test
    shifted = wide + shift * omega
    core = omega.mT @ shifted
    small, basis = torch.linalg.eigh((core + core.mT) / 2)
    half = shifted @ (basis / small.clamp(min=shift).sqrt())
    # The singular vectors by the small Gram matrix: in float64 what that loses lies far below ν, at half the time.
    squares, right = (found.flip(-1) for found in torch.linalg.eigh(half.mT @ half))
    vectors = half @ (right / squares.clamp(min=shift).sqrt())
    return (squares - shift).clamp(min=0).to(image.dtype), vectors.to(image.dtype)
