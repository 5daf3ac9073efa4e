"""Attention over packed sequences: which positions of a row belong together.

All matrix products of a model run over the packed row, without padding. Only attention looks at
sequences: there the row is rearranged to (sequences, longest), attended causally, and put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from mgk_hf.batch import PADDING, TokenBatch, predictors


@frozen(eq=False)
class Layout:
    """Where each sequence's tokens are in the flattened batch of N = B·T positions.

    rows: (S, L) flat positions of each sequence in order, 0 where it is shorter. back: (N,) flat
    position → index into S·L. plain: True where the batch already is (S, L). positions, branches:
    (S, L), None where no mask needs them. empty: indices into S·L where a sequence is shorter. Right padding needs no mask: attention is causal, so no
    token of a sequence sees what comes after it.
    """

    rows: Tensor
    back: Tensor
    plain: bool
    positions: Tensor
    branches: Tensor | None
    empty: Tensor | None = None
    _masks: dict[int | None, Tensor] = field(factory=dict, init=False, repr=False)

    def moved(self, move: Callable[[Tensor], Tensor]) -> Layout:
        """Return the layout with every tensor moved."""
        branches = None if self.branches is None else move(self.branches)
        empty = None if self.empty is None else move(self.empty)
        back, positions = move(self.back), move(self.positions)
        return Layout(move(self.rows), back, self.plain, positions, branches, empty)

    def to_sequences(self, x: Tensor) -> Tensor:
        """(N, D) → (S·L, D)."""
        moved: Tensor = Gather.apply(x, self.rows.flatten(), self.back, None)  # type: ignore[no-untyped-call]
        return moved

    def to_batch(self, x: Tensor) -> Tensor:
        """(S·L, D) → (N, D)."""
        moved: Tensor = Gather.apply(x, self.back, self.rows.flatten(), self.empty)  # type: ignore[no-untyped-call]
        return moved

    def mask(self, window: int | None) -> Tensor | None:
        """Return (S, 1, L, L) booleans, True where a query may look; None: plain causal attention.

        window: a query sees itself and ``window − 1`` positions before it; None: all.
        """
        length = self.rows.shape[1]
        if window is not None and window >= length:
            window = None
        if window is None and self.branches is None:
            return None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor:
        length = self.rows.shape[1]
        order = torch.arange(length, device=self.rows.device)
        allowed = (order[:, None] >= order).expand(self.rows.shape[0], length, length)
        if window is not None:
            allowed = allowed & (
                self.positions[:, :, None] - self.positions[:, None] < window
            )
        if self.branches is not None:
            query, key = self.branches[:, :, None], self.branches[:, None]
            allowed = allowed & ((key == 0) | (key == query))
        return allowed[:, None]


def on_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """Return a batch on a device, with all that depends on its contents worked out on the CPU first.

    Sizes that only the device knows, such as the number of labels, would make every step wait for it.
    Copies to CUDA come from pinned memory and run beside what the device is doing.
    """
    if device.type == "cpu":
        return batch
    where, wanted = predictors(batch)

    def move(tensor: Tensor) -> Tensor:
        if device.type == "cuda":
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    branches = None if batch.branch_ids is None else move(batch.branch_ids)
    return TokenBatch(
        move(batch.input_ids),
        move(batch.labels),
        move(batch.position_ids),
        move(batch.segment_ids),
        branches,
        where=move(where),
        wanted=move(wanted),
        layout=layout_of(batch).moved(move),
    )


def layout_of(batch: TokenBatch) -> Layout:
    """Work out the layout of a batch. Segments must be contiguous within their row."""
    if batch.layout is not None:
        found: Layout = batch.layout
        return found
    segments = batch.segment_ids.flatten()
    count = segments.numel()
    if _is_plain(batch.segment_ids):
        index = torch.arange(count, device=segments.device)
        return Layout(
            index.view(batch.segment_ids.shape),
            index,
            True,
            batch.position_ids,
            batch.branch_ids,
        )
    # Padding becomes a sequence of its own: it is computed with the rest and read by nobody.
    _, inverse, lengths = torch.unique_consecutive(
        segments, return_inverse=True, return_counts=True
    )
    starts = lengths.cumsum(0) - lengths
    width = int(lengths.max())
    offset = torch.arange(width, device=segments.device)
    inside = offset < lengths[:, None]
    rows = torch.where(inside, starts[:, None] + offset, 0)  # (S, L)
    back = inverse * width + (
        torch.arange(count, device=segments.device) - starts[inverse]
    )
    branches = None if batch.branch_ids is None else batch.branch_ids.flatten()[rows]
    empty = (~inside).flatten().nonzero().squeeze(1)
    return Layout(
        rows, back, False, batch.position_ids.flatten()[rows], branches, empty
    )


def _is_plain(segments: Tensor) -> bool:
    """Return whether every row holds one sequence, padded on the right at most."""
    first = segments[:, :1]
    inside = (segments == first) | (segments == PADDING)
    padded_last = (segments[:, 1:] != PADDING) <= (segments[:, :-1] != PADDING)
    return bool(inside.all() & padded_last.all() & (first != PADDING).all())


class Gather(torch.autograd.Function):
    """``x[there]`` whose gradient is ``g[back]``: both ways a gather, never a scatter.

    Correct if every position of x occurs in ``there`` once; ``empty`` are the rows of x that
    do not occur (padding), whose gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, there: Tensor, back: Tensor, empty: Tensor | None
    ) -> Tensor:
        """x: (N, D)   there: (M,)   back: (N,)   returns (M, D)."""
        ctx.save_for_backward(back, empty)
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Gather the gradient back into the order of x."""
        back, empty = ctx.saved_tensors
        gradient = grads[0].index_select(0, back)
        if empty is not None:
            gradient.index_fill_(0, empty, 0.0)
        return gradient, None, None, None
