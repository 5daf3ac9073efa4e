"""Functions of whole rows of logits, a few rows at a time, so that no (positions, V) tensor is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS = 64
"""Rows of logits at once: 67 MB of a vocabulary of 262,144 in fp32."""


def by_rows(function: Callable[[slice], Tensor], rows: int) -> Tensor:
    """Return ``function`` of all rows, (rows,); each chunk is computed again in the backward pass.

    function: slice of n rows → (n,)
    """
    if not rows:
        return function(slice(0, 0))
    parts = [slice(i, min(i + ROWS, rows)) for i in range(0, rows, ROWS)]
    if not torch.is_grad_enabled():
        return torch.cat([function(part) for part in parts])
    return torch.cat([checkpoint(function, p, use_reentrant=False) for p in parts])
