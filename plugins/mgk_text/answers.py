"""Answers as letters, or as numbers counted from 0 or from 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mgk_text.records import LETTERS

AMBIGUOUS = (
    "numbered answers may count from 0 or from 1: none is 0 and none is the number of options;"
    ' set the data\'s answers = "0" or "1", in quotes'
)


def detect(values: Sequence[Any], counts: Sequence[int]) -> str | None:
    """Return how a file counts its answers: ``letter``, ``0`` or ``1``; None where it cannot be told.

    counts: number of options of each row. A 0 says that they count from 0, the number of options
    that they count from 1; both, or neither, leave it open.
    """
    numbers = [(n, c) for v, c in zip(values, counts, strict=True) if (n := number(v)) is not None]
    if not numbers:
        return "letter"
    zero, last = any(n == 0 for n, _ in numbers), any(n == c for n, c in numbers)
    if zero == last:
        return None
    return "0" if zero else "1"


def number(value: Any) -> int | None:
    """Return a value as a whole number, None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value.strip())
    return None


def index(value: Any, options: int, counting: str) -> int:
    """Return the 0-based index of an answer; `ValueError` says what was expected.

    counting: ``letter``, ``0`` or ``1``. Letters are taken in any of them: they are never ambiguous.
    """
    letters = LETTERS[:options]
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in letters:
        return letters.index(value.strip().upper())
    found = number(value)
    if found is None or counting == "letter":
        raise ValueError(
            f"expected a letter from A to {letters[-1]}{_or_number(counting, options)}, got {value!r:.40}"
        )
    shifted = found - (counting == "1")
    if not 0 <= shifted < options:
        raise ValueError(f"expected a number {_range(counting, options)}, got {found}")
    return shifted


def _range(counting: str, options: int) -> str:
    first = int(counting)
    return f"from {first} to {options - 1 + first}"


def _or_number(counting: str, options: int) -> str:
    return "" if counting == "letter" else f" or a number {_range(counting, options)}"
