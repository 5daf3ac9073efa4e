"""Token batches: what a model is shown, several sequences packed into one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

IGNORED = -100
"""The label of a position that is not to be learnt, as everywhere in this field."""

PADDING = -1
"""The segment of a position that is padding."""


@frozen(eq=False)
class TokenBatch:
    """Rows of tokens with their boundaries. All fields are int64 of shape (B, T).

    labels: the token itself where it is to be predicted from what precedes it, else -100; a
    segment's first token has nothing before it and is never learnt. position_ids: count from 0
    within a segment. segment_ids: which sequence a token belongs to, unique over the whole batch;
    -1 for padding. branch_ids: 0 for what a whole segment shares, k > 0 for its k-th continuation,
    which sees the shared part and itself but no other branch; None: no branches. where, wanted,
    layout: what `predictors` and `mgk_hf.layout.layout_of` find, where that was worked out before the
    batch went to its device: a step then never waits for the device (`mgk_hf.layout.on_device`).
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    branch_ids: Tensor | None = field(default=None)
    where: Tensor | None = field(default=None, kw_only=True)
    wanted: Tensor | None = field(default=None, kw_only=True)
    layout: Any = field(default=None, kw_only=True)

    def to(self, device: torch.device | str) -> TokenBatch:
        """Return the batch on a device."""
        branch = None if self.branch_ids is None else self.branch_ids.to(device)
        moved = (
            t.to(device)
            for t in (self.input_ids, self.labels, self.position_ids, self.segment_ids)
        )
        ids, labels, positions, segments = moved
        return TokenBatch(ids, labels, positions, segments, branch)

    @property
    def tokens(self) -> int:
        """Number of positions that are not padding."""
        return int((self.segment_ids != PADDING).sum())


Sequence_ = tuple[Sequence[int], Sequence[int]]
"""(input ids, labels) of one sequence, of equal length."""


def pack(sequences: Sequence[Sequence_]) -> TokenBatch:
    """Put sequences one behind the other into one row: no padding, boundaries by segment.

    :raises ValueError: a sequence is empty, or its labels are of another length
    """
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    for number, (tokens, wanted) in enumerate(sequences):
        _check(tokens, wanted)
        ids += tokens
        labels += (IGNORED, *wanted[1:])
        positions += range(len(tokens))
        segments += [number] * len(tokens)
    return TokenBatch(
        *(
            torch.tensor([row], dtype=torch.long)
            for row in (ids, labels, positions, segments)
        )
    )


def pad(sequences: Sequence[Sequence_], pad_id: int = 0) -> TokenBatch:
    """Put each sequence into a row of its own, padded on the right to the longest."""
    width = max(len(tokens) for tokens, _ in sequences)
    shape = (len(sequences), width)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    labels, segments = torch.full(shape, IGNORED), torch.full(shape, PADDING)
    for row, (tokens, wanted) in enumerate(sequences):
        _check(tokens, wanted)
        n = len(tokens)
        ids[row, :n] = torch.tensor(tokens)
        labels[row, 1:n] = torch.tensor(wanted[1:], dtype=torch.long)
        segments[row, :n] = row
    return TokenBatch(
        ids, labels, torch.arange(width).expand(shape).contiguous(), segments
    )


def _check(tokens: Sequence[int], labels: Sequence[int]) -> None:
    if not tokens or len(tokens) != len(labels):
        raise ValueError(
            f"a sequence of {len(tokens)} tokens has {len(labels)} labels; both must be equal and not 0"
        )


def unpack(batch: TokenBatch) -> list[Sequence_]:
    """Return the batch's sequences in the order of their numbers."""
    flat_segments = batch.segment_ids.flatten()
    sequences: list[Sequence_] = []
    for number in torch.unique(flat_segments[flat_segments != PADDING]).tolist():
        mask = flat_segments == number
        sequences.append(
            (
                batch.input_ids.flatten()[mask].tolist(),
                batch.labels.flatten()[mask].tolist(),
            )
        )
    return sequences


def split(batch: TokenBatch, pad_id: int = 0) -> TokenBatch:
    """Return the same sequences as padded rows, one each: for models that cannot be packed."""
    return pad(unpack(batch), pad_id).to(batch.input_ids.device)


def predictors(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return (flat positions that predict a labelled token, those tokens), each (N,).

    The predictor is the position before in the same row. A label whose predecessor belongs to
    another segment, or to padding, is dropped: nothing there may predict it.
    """
    if batch.where is not None and batch.wanted is not None:
        return batch.where, batch.wanted
    wanted = batch.labels[:, 1:] != IGNORED
    same = (batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]) & (
        batch.segment_ids[:, 1:] != PADDING
    )
    keep = torch.nn.functional.pad(
        wanted & same, (0, 1)
    ).flatten()  # (B·T,), at the predictor
    where = keep.nonzero().squeeze(1)
    return where, batch.labels.flatten()[where + 1]
