"""Progress of long loops: whoever loops counts, whoever runs the command draws.

    with activity("scoring"):
        for item in track(items):
            ...

Outside a command that listens, counting does nothing. Loops shorter than a moment stay silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from attrs import define, field

__all__ = ["Advance", "Listener", "activity", "counting", "reporting_to", "track"]

T = TypeVar("T")
Listener = Callable[[Mapping[str, Any]], None]
"""Takes events ``activity`` (what) and ``progress`` (what, done, total, unit, seconds so far)."""

Advance = Callable[[int], None]
"""Counts so many items as done."""

SILENT = 0.5  # seconds that a loop runs before it is reported
EVERY = 0.1  # seconds between two reports


@define
class _Report:
    """Where progress goes. counting: whether a loop of the current activity counts already."""

    listener: Listener
    activity: str = "working"
    counting: bool = False


@define
class _Count:
    """One loop that counts."""

    report: _Report
    total: int
    unit: str
    done: int = 0
    began: float = field(factory=time.monotonic)
    reported: float = 0.0

    def advance(self, by: int) -> None:
        """Count ``by`` more, and report it if it is time."""
        self.done += by
        now = time.monotonic()
        ended = self.done >= self.total and self.reported > 0
        if now - self.began < SILENT or (now - self.reported < EVERY and not ended):
            return
        self.reported = now
        self.report.listener(
            {
                "event": "progress",
                "what": self.report.activity,
                "done": min(self.done, self.total),
                "total": self.total,
                "unit": self.unit,
                "seconds": now - self.began,
            }
        )


_report: ContextVar[_Report | None] = ContextVar("mgk_progress", default=None)


@contextmanager
def reporting_to(listener: Listener) -> Iterator[None]:
    """Send the events ``activity`` and ``progress`` of everything in the block to ``listener``."""
    token = _report.set(_Report(listener))
    try:
        yield
    finally:
        _report.reset(token)


@contextmanager
def activity(name: str) -> Iterator[None]:
    """Name what the block does, such as ``scoring korean-mcq``; loops inside count under it."""
    report = _report.get()
    if report is None:
        yield
        return
    outer = report.activity, report.counting
    report.activity, report.counting = name, False
    report.listener({"event": "activity", "what": name})
    try:
        yield
    finally:
        report.activity, report.counting = outer
        report.listener({"event": "activity", "what": report.activity})


@contextmanager
def counting(total: int, unit: str = "items") -> Iterator[Advance]:
    """Give a function that counts towards ``total``. Only the outermost loop of an activity counts."""
    report = _report.get()
    if report is None or report.counting or total <= 0:
        yield _nothing
        return
    report.counting = True
    try:
        yield _Count(report, total, unit).advance
    finally:
        report.counting = False


def track(items: Collection[T], unit: str = "items") -> Iterator[T]:
    """Yield items and count them; an item is done when the next one is asked for."""
    with counting(len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


def _nothing(_: int) -> None:
    """Count nothing: nobody listens."""
