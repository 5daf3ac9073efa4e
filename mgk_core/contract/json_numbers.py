"""JSON for numbers that it has no word for: NaN and infinities are written as strings, and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Return plain data with every number that is not finite as a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


TEXT = frozenset(
    [
        "name",
        "mark",
        "metric",
        "phase",
        "probe",
        "from",
        "to",
        "test",
        "worst",
        "rule",
        "dtype",
        "adapter",
        "event",
        "row",
        "state",
        "result",
    ]
)
"""Keys whose values are text in the tables that mgk writes, whatever they contain."""


def numbers(value: Any) -> Any:
    """Return a table with its numbers as they were: undoes `finite`, except under the keys of `TEXT`."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, dict):
        return {k: v if k in TEXT else numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return value


__all__ = ["TEXT", "finite", "numbers"]
