"""Putting texts together into rows of a fixed length, and batches of a bounded size."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence

from mgk_core.contract.bundle import Tokens

Row = tuple[Tokens, ...]
"""What one row of a training set holds: examples that do not see each other."""


def pack(examples: Sequence[Tokens], length: int) -> list[Row]:
    """Pack examples into rows of at most ``length`` tokens: best fit, the longest first.

    No example is cut; one that is longer than a row is the caller's fault (`ValueError`).
    """
    rows: list[list[Tokens]] = []
    by_room: dict[int, list[int]] = defaultdict(list)  # room left → rows that have it
    rooms: list[int] = []  # the keys in use, sorted
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        size = len(example.ids)
        if size > length:
            raise ValueError(
                f"an example of {size} tokens does not fit into a row of {length}"
            )
        place = bisect.bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                rooms.pop(place)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(example)
        if not by_room[room - size]:
            bisect.insort(rooms, room - size)
        by_room[room - size].append(row)
    return [tuple(row) for row in rows]


def fill(rows: Sequence[Row], length: int) -> float:
    """Return the share of the rows' room that holds tokens."""
    return (
        sum(len(e.ids) for row in rows for e in row) / (length * len(rows))
        if rows
        else 0.0
    )


def group(
    examples: Sequence[Tokens], tokens: int, most: int | None = None
) -> list[list[Tokens]]:
    """Part examples, in their order, into batches of at most ``tokens`` tokens and ``most`` examples."""
    batches: list[list[Tokens]] = []
    room = 0
    for example in examples:
        full = (
            not batches
            or len(example.ids) > room
            or (most is not None and len(batches[-1]) >= most)
        )
        if full:
            batches.append([])
            room = tokens
        batches[-1].append(example)
        room -= len(example.ids)
    return batches
