"""Many bad rows as a short list: the first ones, then a count for each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from mgk_core.contract.errors import Problem

SHOWN = 10
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\d+")


class _Kind(NamedTuple):
    """What problems of one kind share: file, column, and the message without its numbers."""

    file: str | None
    where: str
    message: str


def summary(problems: Iterable[Problem]) -> list[Problem]:
    """Return the first problems, and one more for each kind of the others with their number."""
    found = list(problems)
    if len(found) <= SHOWN + 1:
        return found
    rest = Counter(_kind(p) for p in found[SHOWN:])
    more = [
        Problem(kind.where, f"{kind.message}: {count:,} more of this kind", kind.file)
        for kind, count in rest.most_common()
    ]
    return [*found[:SHOWN], *more]


def _kind(problem: Problem) -> _Kind:
    file = None if problem.file is None else re.sub(r":\d+$", "", problem.file)
    where = re.sub(r"\[\d+\]", "[…]", re.sub(r":\d+$", "", problem.where))
    return _Kind(file, where, _general(problem.message))


def _general(message: str) -> str:
    """Return a message with "…" for what differs from row to row."""
    return _VARYING.sub("…", message)
