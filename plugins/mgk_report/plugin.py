"""Writes the report by itself: after each phase and at the run's end, where the extra is installed."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = ("jinja2", "vl_convert")


@hookimpl
def mgk_recorded(run: Path, phase: str) -> None:
    """Write RUN/report.html. A report that cannot be written never stops a run: it is a warning."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return
    from mgk_report.page import NAME, write

    try:
        write([run], run / NAME)
    except Exception as error:  # noqa: BLE001 - see the docstring
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"the report was not written: {reason}", RuntimeWarning, stacklevel=1
        )
