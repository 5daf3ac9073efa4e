"""Several sources as one training set: weights, order, and repeated rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain, zip_longest

from mgk_core.contract.errors import InputError
from mgk_text.records import Record, fingerprint

Part = Sequence[Record]


def mixed(
    parts: Sequence[Part], weights: Sequence[float], *, interleave: bool, seed: int
) -> list[Record]:
    """Return the rows of all parts, each part as often as its weight asks.

    weights: one for each part; 2 takes every row twice, 0.3 a fixed 30 % of them; empty: all once.
    interleave: rows alternate, a part with three times the rows giving three in turn.
    """
    if weights and len(weights) != len(parts):
        raise InputError(
            f"weights: expected one for each source of train, {len(parts)}, got {len(weights)}"
        )
    taken: Sequence[Part] = parts
    if weights:
        taken = [
            weighted(part, w, seed) for part, w in zip(parts, weights, strict=True)
        ]
    return interleaved(taken) if interleave else list(chain.from_iterable(taken))


def weighted(rows: Part, weight: float, seed: int) -> list[Record]:
    """Return every row ``weight`` times; of the fraction, a choice that depends on content alone."""
    whole, fraction = divmod(weight, 1)
    found = list[Record]()
    for row in rows:
        again = _share(row, seed) < fraction
        found += [row] * (int(whole) + again)
    return found


def _share(row: Record, seed: int) -> float:
    state = hashlib.blake2b(fingerprint(row) + str(seed).encode(), digest_size=8)
    return int.from_bytes(state.digest()) / 2**64


def interleaved(parts: Sequence[Part]) -> list[Record]:
    """Alternate between parts in proportion to their sizes, so that any beginning has all of them."""
    parts = [part for part in parts if part]
    if not parts:
        return []
    smallest = min(len(part) for part in parts)
    # Row i of a part with n rows belongs to turn i · smallest / n.
    turns: list[list[list[Record]]] = []
    for part in parts:
        turns.append([[] for _ in range(smallest)])
        for i, row in enumerate(part):
            turns[-1][i * smallest // len(part)].append(row)
    found = list[Record]()
    for turn in zip_longest(*turns, fillvalue=[]):
        found += chain.from_iterable(turn)
    return found


def distinct(rows: Part) -> list[Record]:
    """Return rows without those whose content an earlier one has, blanks and case aside."""
    return list({fingerprint(row): row for row in reversed(rows)}.values())[::-1]
