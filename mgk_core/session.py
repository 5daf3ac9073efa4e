"""What every part of a run shares: configuration, plugins, bundle, store, journal, ledger."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import torch
from attrs import define, field

from mgk_core.bundle import Bundle, PhaseData, Probe, Score
from mgk_core.checkpoint import Loaded
from mgk_core.commit import commit
from mgk_core.config import Resolved
from mgk_core.context import PhaseContext, Remembered
from mgk_core.device import memory
from mgk_core.errors import Interrupted
from mgk_core.events import Events
from mgk_core.hooks import Hooks
from mgk_core.journal import Journal
from mgk_core.ledger import Ledger
from mgk_core.metricslog import Mark
from mgk_core.rundir import phase_folder
from mgk_core.settings import RunConfig
from mgk_core.store import Store, read_tensors


@define(eq=False)
class Session:
    """One process working on one run directory.

    rows: (row name, scores), row 0 first. marks: row name → why its scores are special. checkpoint:
    where the next phase goes on, taken once. changed: this process accepted a change. auto_batch:
    whether a step that does not fit is tried in smaller parts.
    """

    resolved: Resolved
    hooks: Hooks
    store: Store
    journal: Journal
    events: Events
    device: torch.device
    bundle: Bundle
    ledger: Ledger
    data: list[PhaseData] = field(factory=list)
    rows: list[tuple[str, Mapping[str, Score]]] = field(factory=list)
    marks: dict[str, str] = field(factory=dict)
    targets: tuple[str, ...] = ()
    times: dict[str, float] = field(factory=dict)
    stop: Callable[[], bool] = lambda: False
    checkpoint: Loaded | None = None
    changed: bool = False
    auto_batch: bool = False
    _accounted: dict[str, float] = field(factory=dict)

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        return self.resolved.config

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.store.root

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Probes of all phases, in order."""
        return tuple(p for d in self.data for p in d.probes)

    def context(self, index: int) -> PhaseContext:
        """Make the context of one phase."""
        phase = self.config.phases[index]
        return PhaseContext(
            config=self.config,
            phase=phase,
            index=index,
            bundle=self.bundle,
            device=self.device,
            directory=self.store.path(phase_folder(index, phase.name)),
            data=self.data[index] if self.data else None,
            targets=self.targets,
            history=self.history(index),
            scores=tuple(row for _, row in self.rows),
            probes=self.probes,
            tell=self.events,
        )

    def history(self, index: int) -> tuple[Remembered, ...]:
        """Return the statistics of the base and of the phases before ``index`` that were merged."""
        places = [("base", self.store.path("base/statistics.safetensors"))]
        for i, phase in enumerate(self.config.phases[:index]):
            entry = self.ledger.entry(phase.name)
            if entry is not None and entry.result == "committed":
                places.append((phase.name, self.store.path(f"{phase_folder(i, phase.name)}/statistics.safetensors")))
        return tuple(Remembered(name, path, _reader(path)) for name, path in places if path.exists())

    def commit(self, event: str, **data: Any) -> None:
        """Commit the ledger and note ``event``, with how far metrics.jsonl belongs to it."""
        commit(self.store, self.journal, self.ledger, event, **data, metrics=attrs.asdict(self.mark()))

    def mark(self) -> Mark:
        """Bring the metrics to the device and say how far they are whole."""
        return self.events.log.sync() if self.events.log is not None else Mark()

    def check_stop(self, where: str) -> None:
        """End here where it was asked for. where: what was being done, for the message.

        :raises Interrupted: a signal came, or the time is up
        """
        if self.stop():
            raise Interrupted(f"stopped {where}")

    def take_checkpoint(self) -> Loaded | None:
        """Return the checkpoint to go on from, the first time."""
        found, self.checkpoint = self.checkpoint, None
        return found

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to one part of the run's account."""
        self.events("part", part=part)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.times[part] = self.times.get(part, 0.0) + time.perf_counter() - began

    def account(self) -> dict[str, Any]:
        """Return the seconds spent by part since the last call, and memory as it stands, for the journal."""
        spent = {k: round(v - self._accounted.get(k, 0.0), 3) for k, v in self.times.items()}
        self._accounted = dict(self.times)
        return {"seconds": {k: v for k, v in spent.items() if v}, "memory": memory(self.device)}


def _reader(path: Path) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: read_tensors(path)


SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C, the system's notice, a job scheduler's notice before its limit, and a terminal that has gone."""


class StopFlag:
    """Turns signals, and a time that is up, into a question; a second SIGINT stops at once."""

    def __init__(self, tell: Callable[[], None] = lambda: None, minutes: float | None = None) -> None:
        """:param tell: called once, perhaps inside a signal's handler: it may touch no buffered stream
        :param minutes: from now on until the answer is yes by itself
        """
        self.signal: int | None = None
        self.tell = tell
        self._until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._told = False

    def __call__(self) -> bool:
        """Whether to stop: a signal came, or the time is up."""
        if self.signal is None and time.monotonic() < self._until:
            return False
        self._tell_once()
        return True

    def _tell_once(self) -> None:
        if not self._told:
            self._told = True
            self.tell()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        self._tell_once()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers inside the block (main thread only: elsewhere signals are not ours).

        A hang-up that is ignored already, as under ``nohup``, stays so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {}
        for number in (int(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)):
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for known, handler in before.items():
                signal.signal(known, handler)
