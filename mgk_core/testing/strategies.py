"""Hypothesis strategies: models, scales, dtypes and training histories that leave no trap out.

Traps: alpha == rank hides a missing scale, square shapes a missing transpose, B = 0 everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from mgk_core.testing.zoo import KINDS, Case, Kind, make

SEEDS = st.integers(0, 2**16)
BATCHES = st.integers(1, 5)
HISTORIES = st.lists(SEEDS, min_size=1, max_size=6)
"""One seed per consecutive phase."""


@st.composite
def cases(
    draw: st.DrawFn,
    kinds: Sequence[Kind] = KINDS,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    layers: Sequence[int] = (1,),
) -> Case:
    """Draw a small frozen model of any kind, with sizes that are not square."""
    return make(
        draw(st.sampled_from(list(kinds))),
        seed=draw(SEEDS),
        dtype=draw(st.sampled_from(list(dtypes))),
        layers=draw(st.sampled_from(list(layers))),
        sizes=lambda usual: draw(st.integers(2, usual + 3)),
    )


@st.composite
def scales(draw: st.DrawFn, ranks: Sequence[int] = (1, 2, 3)) -> tuple[int, float]:
    """Draw (rank, alpha) with alpha ≠ rank."""
    rank = draw(st.sampled_from(list(ranks)))
    alpha = draw(st.sampled_from([a for a in (0.5, 1, 2, 3, 4, 6, 8, 16) if a != rank]))
    return rank, float(alpha)
