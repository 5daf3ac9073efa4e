"""Answers as people write them: letters, numbers from 0 or 1, ①, (A), or an option's own text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from attrs import frozen

LETTERS = "ABCDEFGHIJ"
_CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
_DRESSED = re.compile(r"[(\[]?\s*([A-Za-z]|\d{1,2}|[①-⑩])\s*(?:번|[.):\]])*\s*")

AMBIGUOUS = (
    "numbered answers may count from 0 or from 1: none is 0 and none is the number of options;"
    ' set answers = "0" or "1" (in quotes) in this data table'
)
UNLABELLED = "has no answer (-1, as in an unlabelled test split); use a labelled file"


@frozen
class Given:
    """One row's answer, as its file has it, with its options. keys: of options in a dict."""

    value: Any
    options: Sequence[str]
    keys: Sequence[str] = ()


def detect(rows: Sequence[Given]) -> str | None:
    """Return how a file gives its answers: ``letter``, ``0``, ``1`` or ``text``; None: unclear.

    A number 0 shows that they count from 0, the number of options that they count from 1; both,
    or neither, leave it open. Texts are taken where one of them can be nothing else.
    """
    rows = [row for row in rows if row.options]
    if _are_texts(rows):
        return "text"
    zero = last = numbered = False
    for row in rows:
        found = number(row.value)
        if found is None or found < 0 or _clear(row) is not None:
            continue
        numbered = True
        zero |= found == 0
        last |= found == len(row.options)
    if not numbered:
        return "letter"
    if zero == last:
        return None
    return "0" if zero else "1"


def _are_texts(rows: Sequence[Given]) -> bool:
    """Whether every answer is the text of an option, and not all could be numbers or letters."""
    if not rows or not all(_same(row.value, row.options) for row in rows):
        return False
    return any(_neither(row) for row in rows)


def _neither(row: Given) -> bool:
    found = number(row.value)
    if found is not None:
        return found > len(row.options) and _clear(row) is None
    return letter(row.value) not in LETTERS[: len(row.options)]


def number(value: Any) -> int | None:
    """Return an answer as a whole number; None if it is none. ``③`` and ``(3)`` are 3."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    text = _plain(value)
    if text in _CIRCLED and text:
        return _CIRCLED.index(text) + 1
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() else None


def letter(value: Any) -> str:
    """Return an answer as a capital letter; ``?`` if it is none."""
    text = _plain(value).upper()
    return text if len(text) == 1 and text in LETTERS else "?"


def index(given: Given, counting: str) -> int:
    """Return the 0-based index of an answer; `ValueError` names what was expected.

    counting: ``letter``, ``0``, ``1`` or ``text``. Letters, ① and the options' own texts are taken
    with any of them where they are unambiguous.
    """
    options, value = given.options, given.value
    same = _same(value, options)
    if counting == "text" and len(same) == 1:
        return same[0]
    if (clear := _clear(given)) is not None:
        return clear
    if letter(value) in LETTERS[: len(options)]:
        return LETTERS.index(letter(value))
    found = number(value)
    if found == -1:
        raise ValueError(UNLABELLED)
    if counting in {"0", "1"} and found is not None:
        return _shifted(found, counting, len(options))
    if len(same) == 1:
        return same[0]
    raise ValueError(_expected(given, counting))


def _shifted(found: int, counting: str, options: int) -> int:
    if not 0 <= found - int(counting) < options:
        raise ValueError(f"expected a number {_range(counting, options)}, got {found}")
    return found - int(counting)


def _expected(given: Given, counting: str) -> str:
    last = LETTERS[len(given.options) - 1]
    numbers = (
        ""
        if counting not in {"0", "1"}
        else f", a number {_range(counting, len(given.options))}"
    )
    return f"expected a letter from A to {last}{numbers}, or the text of one option, got {given.value!r:.40}"


def _range(counting: str, options: int) -> str:
    first = int(counting)
    return f"from {first} to {options - 1 + first}"


def _clear(given: Given) -> int | None:
    """Return the index of an answer that is never ambiguous: an option's key, ② or 2번."""
    keys = [k.strip().upper() for k in given.keys]
    plain = _plain(given.value)
    if plain.upper() in keys:
        return keys.index(plain.upper())
    from_one = plain in tuple(_CIRCLED) or str(given.value).strip().endswith("번")
    found = number(given.value) if from_one else None
    return found - 1 if found is not None and 1 <= found <= len(given.options) else None


def _plain(value: Any) -> str:
    """Return an answer without what people put around it: ``(A)``, ``A.`` and ``3번``."""
    text = str(value).strip()
    found = _DRESSED.fullmatch(text)
    return found[1] if found else text


def _same(value: Any, options: Sequence[str]) -> list[int]:
    wanted = _folded(value)
    return [i for i, option in enumerate(options) if _folded(option) == wanted]


def _folded(value: Any) -> str:
    return " ".join(unicodedata.normalize("NFC", str(value)).split()).casefold()
