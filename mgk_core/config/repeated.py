"""A mistake made once in ``defaults`` is one problem, not one for each phase."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve

from mgk_core.contract.errors import Problem

_IN_A_PHASE = re.compile(r"(?P<flag>--\S+: )?phases\.(?P<phase>[^.]+)\.(?P<key>.+)")


def merged(problems: Iterable[Problem], values: Mapping[str, Any]) -> list[Problem]:
    """Return the problems, those of a value that phases take from ``defaults`` once and under its own name.

    values: the configuration as it was read.
    """
    found = dict[Problem, None]()
    for problem in problems:
        found[_named_by_its_origin(problem, values)] = None
    return list(found)


def _named_by_its_origin(problem: Problem, values: Mapping[str, Any]) -> Problem:
    place = _IN_A_PHASE.fullmatch(problem.where)
    if place is None or not _holds(values.get("defaults"), place["key"]):
        return problem
    if _holds(values.get("phases"), f"{place['phase']}.{place['key']}"):
        return problem  # the phase has a value of its own
    return evolve(problem, where=f"{place['flag'] or ''}defaults.{place['key']}")


def _holds(table: Any, key: str) -> bool:
    """Whether a dotted key is in a table."""
    for part in key.split("."):
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True
