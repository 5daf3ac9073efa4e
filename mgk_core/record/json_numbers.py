"""Plain data on its way to JSON and back, where a number may be one that JSON has no word for."""

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


NAMES = frozenset(
    (
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
    )
)
"""Keys whose values are text in the tables that mgk writes, whatever they say."""


def numbers(value: Any) -> Any:
    """Return a table that `json_text` wrote with its numbers as they were: undoes `finite`, but for names."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, dict):
        return {k: v if k in NAMES else numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return value
