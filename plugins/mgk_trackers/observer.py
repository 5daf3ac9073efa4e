"""Hands a run's events and record to its trackers. A tracker that fails is left out; the run continues."""

from __future__ import annotations

import atexit
import tomllib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from mgk_core.contract.context import PhaseContext
from mgk_trackers.backends import Backend, open_backend
from mgk_trackers.record import Record, scalars_of
from mgk_trackers.specs import TRACKERS, TrackerSpec

REPORT = "report.html"


@define(eq=False)
class Tracker:
    """One tracker of one run in this process. Opened at its first use; None: not yet, or it failed."""

    spec: TrackerSpec
    record: Record
    backend: Backend | None = None
    failed: bool = False

    def use(self, act: Callable[[Backend], None]) -> bool:
        """Let the backend act; whether it did. The first error is a warning, and the last use."""
        if self.failed:
            return False
        try:
            # Libraries warn of what they themselves will change; no user can act on that.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.backend is None:
                    self.backend = open_backend(self.record, self.spec)
                act(self.backend)
        except Exception as error:  # noqa: BLE001 - a tracker never stops a run
            self.failed = True
            text = f"{self.spec.type} failed and is not used any more: {type(error).__name__}: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return False
        return True

    def close(self, *, finished: bool) -> None:
        """Write what is left; a later use opens the record again."""
        if self.backend is not None:
            backend = self.backend
            self.use(lambda _: backend.close(finished=finished))
            self.backend = None


_open: dict[Path, list[Tracker]] = {}
"""Run directory → its trackers. They outlive a phase, and are closed at the process's end."""


def trackers_of(run: Path, specs: tuple[TrackerSpec, ...]) -> list[Tracker]:
    """Return the trackers of a run; each is made once in a process."""
    found = _open.setdefault(run.resolve(), [])
    known = {tracker.spec.type for tracker in found}
    new = [spec for spec in specs if spec.type not in known]
    if new:
        record = found[0].record if found else Record.of(run)
        found += [Tracker(spec, record) for spec in new]
    return found


@atexit.register
def close_all() -> None:
    """Close what an interrupted run left open."""
    for trackers in _open.values():
        for tracker in trackers:
            tracker.close(finished=False)
    _open.clear()


@define(eq=False)
class TrackingObserver:
    """Sends the scalars of one phase's events to all trackers."""

    phase: str
    trackers: list[Tracker] = field(factory=list)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Send what the event measures, once for each step."""
        values = scalars_of(event)
        if not values:
            return
        step = int(event["step"])
        named = {f"{self.phase}/{name}": value for name, value in values.items()}
        # A step's loss, the loss on dev and the drift come one after the other.
        stream = f"{self.phase}/{event['event']}"
        for tracker in self.trackers:
            record, kind = tracker.record, tracker.spec.type
            if not record.is_new(kind, stream, step):
                continue
            if tracker.use(lambda b, v=named, s=step: b.scalars(v, s)):  # type: ignore[misc]
                record.sent(kind, stream, step)


def observer(ctx: PhaseContext) -> TrackingObserver | None:
    """Return what watches a phase; None where it names no tracker, or has no run directory."""
    specs = ctx.specs(TrackerSpec)
    run = ctx.directory.parent.parent
    if not specs or not (run / "run.toml").is_file():
        return None
    return TrackingObserver(ctx.phase.name, trackers_of(run, specs))


def specs_in(run: Path) -> tuple[TrackerSpec, ...]:
    """Return the trackers that any phase of a run names."""
    config = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    found = {}
    for phase in config.get("phases", {}).values():
        for kind, table in phase.get("observe", {}).items():
            if kind in TRACKERS:
                found[kind] = TRACKERS[kind](**{**table, "type": kind})
    return tuple(found.values())


def recorded(run: Path, phase: str) -> None:
    """Send the matrix, the ledger's digests and the report. phase: empty at the run's end."""
    # A process that only finishes a run has no observers, so the run's own configuration names them.
    trackers = trackers_of(run, specs_in(run))
    if not trackers:
        return
    table, rows = trackers[0].record.matrix()
    digests = trackers[0].record.digests()
    for tracker in trackers:
        for step, scores in enumerate(rows):
            if tracker.record.is_new(tracker.spec.type, "retention", step):
                points = {f"retention/{name}": value for name, value in scores.items()}
                if tracker.use(lambda b, v=points, s=step: b.scalars(v, s)):  # type: ignore[misc]
                    tracker.record.sent(tracker.spec.type, "retention", step)
        name = f"matrix/{phase or 'final'}"
        tracker.use(lambda b, n=name: b.table(n, table, len(rows) - 1))  # type: ignore[misc]
        tracker.use(lambda b: b.facts(digests))
        if not phase and (run / REPORT).is_file():
            tracker.use(lambda b: b.file(run / REPORT))
        if not phase:
            tracker.close(finished=True)
    if not phase:
        del _open[run.resolve()]
