"""Scoring options: all options of a question packed behind one copy of it.

A question and its options become one segment: the prompt is its trunk, each option a branch that
sees the trunk and itself. So the prompt is computed once, and several questions share a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.bundle import OptionScores, Tokens
from mgk_core.contract.errors import InputError
from mgk_hf.batch import IGNORED, TokenBatch


class Item(Protocol):
    """What can be scored: `mgk_core.contract.bundle.Choice`, or anything shaped like it."""

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@frozen(eq=False)
class PackedItems:
    """A batch of branched segments and where its answers are.

    where: (N,) flat positions that predict option tokens; wanted: (N,) those tokens; option: (N,)
    the running number of the option that a token belongs to.
    """

    batch: TokenBatch
    where: Tensor
    wanted: Tensor
    option: Tensor


def pack_items(items: Sequence[Item]) -> PackedItems:
    """Pack items into one row.

    :raises InputError: a prompt or an option without tokens
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    branches: list[int] = []
    where: list[int] = []
    wanted: list[int] = []
    option: list[int] = []
    number = 0
    for segment, item in enumerate(items):
        _check(segment, item)
        trunk = len(item.prompt)
        last = (
            len(ids) + trunk - 1
        )  # the prompt's last token predicts every option's first
        ids += item.prompt
        positions += range(trunk)
        branches += [0] * trunk
        for branch, tokens in enumerate(item.options, start=1):
            start = len(ids)
            ids += tokens
            positions += range(trunk, trunk + len(tokens))
            branches += [branch] * len(tokens)
            where += [last, *range(start, start + len(tokens) - 1)]
            wanted += tokens
            option += [number] * len(tokens)
            number += 1
        segments += [segment] * (len(ids) - len(segments))
    row = [
        torch.tensor([values], dtype=torch.long)
        for values in (ids, positions, segments, branches)
    ]
    batch = TokenBatch(row[0], torch.full_like(row[0], IGNORED), row[1], row[2], row[3])
    return PackedItems(
        batch, *(torch.tensor(v, dtype=torch.long) for v in (where, wanted, option))
    )


def separate_items(items: Sequence[Item]) -> Iterator[tuple[list[int], int]]:
    """Yield (prompt + option, length of the prompt) for models that cannot branch."""
    for number, item in enumerate(items):
        _check(number, item)
        for tokens in item.options:
            yield [*item.prompt, *tokens], len(item.prompt)


def _check(number: int, item: Item) -> None:
    if not item.prompt or not item.options or not all(item.options):
        raise InputError(
            f"item {number}: prompt and options need at least one token each"
        )


def size_of(item: Item | Tokens) -> int:
    """Return how many positions an item takes when packed."""
    if isinstance(item, Tokens):
        return len(item.ids)
    return len(item.prompt) + sum(len(o) for o in item.options)


def groups(items: Sequence[Item | Tokens], budget: int) -> Iterator[list[int]]:
    """Yield indices of items to compute together: similar sizes, at most ``budget`` positions."""
    order = sorted(range(len(items)), key=lambda i: size_of(items[i]))
    group: list[int] = []
    used = 0
    for index in order:
        size = size_of(items[index])
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(index)
        used += size
    if group:
        yield group


def collect(
    items: Iterable[Item], sums: Iterator[float], tokenizer: Any
) -> list[OptionScores]:
    """Give each item its options' summed log-likelihoods, lengths in tokens and in UTF-8 bytes."""
    found = []
    for item in items:
        logprob = tuple(next(sums) for _ in item.options)
        tokens = tuple(len(o) for o in item.options)
        known = tuple(getattr(item, "nbytes", ()) or ())
        found.append(
            OptionScores(
                logprob,
                tokens,
                known or tuple(byte_length(o, tokenizer) for o in item.options),
            )
        )
    return found


def byte_length(ids: Sequence[int], tokenizer: Any) -> int:
    """Return the UTF-8 length of the text of these tokens."""
    return len(tokenizer.decode(list(ids), skip_special_tokens=False).encode())
