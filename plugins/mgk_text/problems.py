"""Many bad rows as a short list: the first ones, then a count for each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from attrs import evolve

from mgk_core.contract.errors import Problem

SHOWN = 10
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\d+")


class _Kind(NamedTuple):
    """What problems of one kind share: file, column, and the message without its numbers."""

    file: str | None
    where: str
    message: str


def summary(problems: Iterable[Problem]) -> list[Problem]:
    """Return the first problems, and one more for each kind of the others with their number.

    The one of a kind is its first: with its line, and with what to do about it.
    """
    found = list(problems)
    if len(found) <= SHOWN + 1:
        return found
    rest = Counter(_kind(p) for p in found[SHOWN:])
    first: dict[_Kind, Problem] = {}
    for problem in found[SHOWN:]:
        first.setdefault(_kind(problem), problem)
    return [
        *found[:SHOWN],
        *(_counted(first[kind], count) for kind, count in rest.most_common()),
    ]


def several(count: int, what: str) -> str:
    """Return ``1 row`` or ``1,200 rows``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def verb(count: int, what: str) -> str:
    """Return a verb as it follows a count: ``1 row shares``, ``2 rows share``."""
    return f"{what}s" if count == 1 else what


def _counted(problem: Problem, count: int) -> Problem:
    """Return a problem that stands for all of its kind."""
    if count == 1:
        return problem
    message = f"{problem.message} (and {count - 1:,} more of this kind)"
    return evolve(problem, message=message)


def _kind(problem: Problem) -> _Kind:
    file = None if problem.file is None else re.sub(r":\d+$", "", problem.file)
    where = re.sub(r"\[\d+\]", "[…]", re.sub(r":\d+$", "", problem.where))
    return _Kind(file, where, _general(problem.message))


def _general(message: str) -> str:
    """Return a message with "…" for what differs from row to row."""
    return _VARYING.sub("…", message)
