"""Where events go: the console's sink, the metrics file, the phase's observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from attrs import define, field

from mgk_core.contract.context import Observer
from mgk_core.contract.events import EVENTS
from mgk_core.record.metrics_log import MetricsLog

Sink = Callable[[Mapping[str, Any]], None]
KEPT = tuple(name for name, event in EVENTS.items() if event.kept)


def ignore(_: Mapping[str, Any]) -> None:
    """Be the sink of those who want to hear nothing."""


@define(eq=False)
class Events:
    """Hands each event to everybody. ``event`` in `KEPT` is written to metrics.jsonl too.

    part, phase: what the last event was about, for an error that knows no better where it is.
    """

    sink: Sink = ignore
    log: MetricsLog | None = None
    observers: list[Observer] = field(factory=list)
    part: str = "load"
    phase: str | None = None

    def __call__(self, event: str, **data: Any) -> None:
        """Send one event to everyone."""
        entry = {"event": event, **data}
        if self.log is not None and event in KEPT:
            self.log.write(entry)
        self._tell(entry)

    def tell(self, event: str, **data: Any) -> None:
        """Send to the console and the observers only what metrics.jsonl has already."""
        self._tell({"event": event, **data})

    def _tell(self, entry: Mapping[str, Any]) -> None:
        if entry["event"] == "part":
            self.part = str(entry["part"])
        self.phase = entry.get("phase") or self.phase
        self.sink(entry)
        seen = MappingProxyType(entry)  # no observer changes what the next one sees
        for observer in self.observers:
            observer.on_event(seen)

    def observe(self, observers: Sequence[Observer]) -> None:
        """Replace the observers by those of a new phase."""
        self.observers = list(observers)

    def flush(self) -> None:
        """Hand buffered metrics to the system."""
        if self.log is not None:
            self.log.flush()
