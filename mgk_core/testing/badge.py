"""The result of the conformance tests as a badge: JSON as shields.io's endpoint reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mgk_core.testing.laws import LawResult


def badge(results: Iterable[LawResult]) -> dict[str, Any]:
    """Return label, message and colour; green needs at least one test that applies, and no failure."""
    found = list(results)
    passed, failed = sum(r.ok is True for r in found), sum(r.ok is False for r in found)
    if failed:
        message, color = f"{failed} of {passed + failed} failed", "red"
    else:
        message, color = (
            (f"{passed} passed", "brightgreen") if passed else ("not tested", "grey")
        )
    return {
        "schemaVersion": 1,
        "label": "mgk conformance",
        "message": message,
        "color": color,
    }


def write_badge(path: Path, results: Iterable[LawResult]) -> None:
    """Write the badge to a file, whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(badge(results)) + "\n", encoding="utf-8")
    temporary.replace(path)
