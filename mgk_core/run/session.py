"""What every part of a run shares: configuration, plugins, bundle, store, journal, ledger."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define, field

from mgk_core.contract.bundle import Bundle, PhaseData, Probe, Score
from mgk_core.contract.context import PhaseContext, Remembered
from mgk_core.contract.errors import Interrupted
from mgk_core.contract.files import read_tensors
from mgk_core.contract.progress import activity
from mgk_core.contract.settings import RunConfig
from mgk_core.contract.world import ALONE, World
from mgk_core.host.hooks import Hooks
from mgk_core.model.device import memory
from mgk_core.record.checkpoint import Loaded
from mgk_core.record.commit import commit
from mgk_core.record.events import Events
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import Ledger, PhaseEntry
from mgk_core.record.metrics_log import Mark
from mgk_core.record.run_directory import BASE, STATISTICS, phase_folder
from mgk_core.record.store import Store
from mgk_core.run.frozen_weights import FrozenWeights
from mgk_core.run.phase_record import DirectoryRecord, PhaseRecord


@define(eq=False, kw_only=True)
class PhaseSession:
    """What the phases of one process share, wherever their record is kept.

    rows: (row name, scores), the baseline first. marks: row name → why its scores are special.
    own_probes: of the table ``probes``. notes: what was decided for the user while opening. checkpoint: where the next phase continues, taken once. changed: this process accepted a change.
    auto_batch: whether a step that does not fit is tried in smaller parts.
    """

    config: RunConfig
    hooks: Hooks
    events: Events
    device: torch.device
    bundle: Bundle
    ledger: Ledger
    weights: FrozenWeights
    data: list[PhaseData] = field(factory=list)
    own_probes: list[Probe] = field(factory=list)
    notes: list[str] = field(factory=list)
    rows: list[tuple[str, Mapping[str, Score]]] = field(factory=list)
    marks: dict[str, str] = field(factory=dict)
    targets: tuple[str, ...] = ()
    times: dict[str, float] = field(factory=dict)
    stop: Callable[[], bool] = lambda: False
    checkpoint: Loaded | None = None
    changed: bool = False
    auto_batch: bool = False
    world: World = ALONE

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Probes of all phases in order, then those of the pipeline itself."""
        return (*(p for d in self.data for p in d.probes), *self.own_probes)

    def record(self, index: int) -> PhaseRecord:
        """Return where one phase keeps what it does and makes."""
        raise NotImplementedError

    def history(self, index: int) -> tuple[Remembered, ...]:
        """Return the statistics of the base and of the phases before ``index`` that were merged."""
        raise NotImplementedError

    def is_last(self, index: int) -> bool:
        """Return whether this is the last phase."""
        return index == len(self.config.phases) - 1

    def context(self, index: int) -> PhaseContext:
        """Make the context of one phase; its folder is there when a hook gets it."""
        return PhaseContext(
            config=self.config,
            phase=self.config.phases[index],
            index=index,
            bundle=self.bundle,
            device=self.device,
            directory=self.record(index).directory,
            data=self.data[index] if self.data else None,
            targets=self.targets,
            history=self.history(index),
            scores=tuple(row for _, row in self.rows),
            probes=self.probes,
            tell=self.events,
            world=self.world,
        )

    def mark(self) -> Mark:
        """Write the metrics to the device and return how far they are whole."""
        return self.events.log.sync() if self.events.log is not None else Mark()

    def check_stop(self, where: str) -> None:
        """End here where it was asked for. where: what was being done, for the message.

        :raises Interrupted: a signal came, or the time is up
        """
        if self.stop():
            raise Interrupted(f"stopped {where}")

    def take_checkpoint(self) -> Loaded | None:
        """Return the checkpoint to continue from, the first time."""
        found, self.checkpoint = self.checkpoint, None
        return found

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to one part of the run's account."""
        self.events("part", part=part)
        began = time.perf_counter()
        try:
            with activity(part):
                yield
        finally:
            self.times[part] = self.times.get(part, 0.0) + time.perf_counter() - began


@define(eq=False, kw_only=True)
class Session(PhaseSession):
    """One process working on one run directory."""

    store: Store
    journal: Journal
    _accounted: dict[str, float] = field(factory=dict)
    _aside: ExitStack = field(factory=ExitStack)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.store.root

    def record(self, index: int) -> DirectoryRecord:
        """Return the record in a phase's folder, which is made."""
        folder = phase_folder(index, self.config.phases[index].name)
        self.store.make_folder(folder)
        return DirectoryRecord(self.store, self.journal, folder, self._finish)

    def context(self, index: int) -> PhaseContext:
        """See `PhaseSession`; ranks other than the leader get a temporary folder of their own."""
        ctx = super().context(index)
        if not self.world.leader:
            folder = tempfile.TemporaryDirectory(prefix="mgk-rank-")
            ctx.directory = Path(self._aside.enter_context(folder))
        return ctx

    def close(self) -> None:
        """Remove temporary folders."""
        self._aside.close()

    def _finish(self, entry: PhaseEntry) -> None:
        self.ledger.phases.append(entry)
        self.commit(
            "committed", phase=entry.phase, result=entry.result, merged=entry.merged
        )

    def history(self, index: int) -> tuple[Remembered, ...]:
        """Return the statistics of the base and of the phases before ``index`` that were merged."""
        places = [("base", self.store.path(f"{BASE}/{STATISTICS}"))]
        for i, phase in enumerate(self.config.phases[:index]):
            entry = self.ledger.entry(phase.name)
            if entry is not None and entry.result == "committed":
                folder = phase_folder(i, phase.name)
                places.append((phase.name, self.store.path(f"{folder}/{STATISTICS}")))
        found = [(name, path) for name, path in places if path.exists()]
        return tuple(Remembered(name, path, _reader(path)) for name, path in found)

    def commit(self, event: str, **data: Any) -> None:
        """Commit the ledger and note ``event``, with how far metrics.jsonl belongs to it."""
        metrics = attrs.asdict(self.mark())
        commit(self.store, self.journal, self.ledger, event, **data, metrics=metrics)

    def account(self) -> dict[str, Any]:
        """Return the seconds spent by part since the last call, and memory in use, for the journal."""
        spent = {
            k: round(v - self._accounted.get(k, 0.0), 3) for k, v in self.times.items()
        }
        self._accounted = dict(self.times)
        return {
            "seconds": {k: v for k, v in spent.items() if v},
            "memory": memory(self.device),
        }


def _reader(path: Path) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: read_tensors(path)
