"""What a base can read: ids that have a row in its table, positions that it has, the window it was made for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from attrs import define

from mgk_core.contract.bundle import Choice, Tokens
from mgk_core.contract.errors import InputError
from mgk_hf.checks import positions_of, rows_of, window_of


@define(eq=False)
class Limits:
    """A base's limits. rows: of the embedding table. positions: None for rotary ones. window: in tokens."""

    tokenizer: Any
    rows: int
    positions: int | None
    window: int | None

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Limits:
        """Return the limits of a transformers model."""
        return cls(
            tokenizer,
            rows_of(model),
            positions_of(model.config),
            window_of(model.config),
        )

    def check(self, items: Iterable[Any]) -> tuple[str, ...]:
        """Refuse what the base cannot read; return a note where rotary positions go beyond its window.

        :param items: `Tokens` and `Choice`; others are left alone
        :raises InputError: an id without a row, or a sequence longer than the positions
        """
        longest = 0
        for item in items:
            for ids in _sequences(item):
                self._check_ids(ids)
            longest = max(longest, _length(item))
        self.check_length(longest)
        if self.positions is None and self.window is not None and longest > self.window:
            text = (
                f"the longest sequence has {longest:,} tokens and the base was made for {self.window:,}"
                " positions; beyond these its outputs get worse: lower max_length"
            )
            return (text,)
        return ()

    def check_length(self, length: int) -> None:
        """Refuse a sequence that is longer than the base's table of positions."""
        if self.positions is not None and length > self.positions:
            raise InputError(
                f"a sequence of {length:,} tokens does not fit the base's {self.positions:,} positions;"
                f" set max_length = {self.positions} or less in the phase's data"
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        if ids and max(ids) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(int(max(ids)))
            raise InputError(
                f"base.id: token {token!r} has id {max(ids)}, and the base's embedding has {self.rows:,}"
                " rows; expected the tokenizer that belongs to the weights, or text without this token"
            )


def _sequences(item: Any) -> Iterable[Sequence[int]]:
    """Yield the id sequences of an item."""
    if isinstance(item, Tokens):
        yield item.ids
    elif isinstance(item, Choice):
        yield item.prompt
        yield from item.options


def _length(item: Any) -> int:
    if isinstance(item, Tokens):
        return len(item.ids)
    if isinstance(item, Choice):
        return len(item.prompt) + max(map(len, item.options), default=0)
    return 0
