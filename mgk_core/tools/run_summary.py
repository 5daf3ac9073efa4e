"""A summary of a run directory, from its own files alone.

Needs no plugin and no model, so that a run can be looked at wherever it was copied to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import define, field, frozen

from mgk_core.config.tree import read_toml
from mgk_core.contract.errors import DigestError
from mgk_core.contract.files import read_json
from mgk_core.contract.json_numbers import numbers
from mgk_core.record.commit import standing
from mgk_core.record.journal import Journal, open_journal
from mgk_core.record.ledger import Ledger, PhaseEntry, read_ledger
from mgk_core.record.run_directory import (
    CONFIG,
    LEDGER,
    MERGE,
    METRICS,
    MODEL,
    RETENTION,
    owner_of,
    phase_folder,
    require_run,
)
from mgk_core.record.store import Store, file_digest

Status = Literal["finished", "stopped", "unfinished", "refused", "running"]
PhaseState = Literal["committed", "kept_apart", "rolled_back", "begun", "waiting"]


@define
class Training:
    """One phase's training according to metrics.jsonl. memory: name → peak bytes.

    best_step: of dev, where the training ended early because dev did not improve.
    """

    step: int = 0
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    count: int = 0
    seconds: float = 0.0
    unit: str = "samples"
    skipped: int = 0
    memory: dict[str, int] = field(factory=dict)
    alarms: int = 0
    best_step: int | None = None

    @property
    def per_second(self) -> float | None:
        """Tokens or samples per second, over the whole phase."""
        return self.count / self.seconds if self.seconds > 0 else None


@frozen
class PhaseSummary:
    """One phase of a run. entry: its row in the ledger, None where it has not ended."""

    name: str
    index: int
    title: str
    state: PhaseState
    training: Training
    entry: PhaseEntry | None = None
    merge: Mapping[str, Any] = field(factory=dict)


@frozen
class RunSummary:
    """A run as read from its directory.

    notes: what could not be read, and why. damaged: whether journal and ledger contradict each other.
    """

    directory: Path
    name: str
    title: str
    status: Status
    config: Mapping[str, Any]
    phases: tuple[PhaseSummary, ...]
    journal: Journal
    ledger: Ledger | None = None
    retention: Mapping[str, Any] = field(factory=dict)
    times: Mapping[str, float] = field(factory=dict)
    phase_times: Mapping[str, Mapping[str, float]] = field(factory=dict)
    model: Path | None = None
    owner: str | None = None
    notes: tuple[str, ...] = ()
    damaged: bool = False


def look(run: Path) -> RunSummary:
    """Read a run directory. Nothing is written or repaired.

    :raises InputError: it is not a run directory
    :raises StoreError: its journal or ledger is damaged
    """
    require_run(run)
    config = read_toml(run / CONFIG)[0]
    journal = open_journal(Store(run), repair=False)
    ledger = read_ledger(run) if (run / LEDGER).exists() else None
    notes: list[str] = []
    damaged = False
    try:
        standing(Store(run), journal)
    except DigestError as error:
        notes.append(str(error))
        damaged = True
    training = _training(run, notes)
    _resumes_at(journal, training)
    phases = tuple(_phases(run, config, ledger, journal, training))
    owner = owner_of(run)
    model = run / MODEL
    phase_times = _times(journal)
    return RunSummary(
        directory=run,
        name=str(config.get("name", run.name)),
        title=str(config.get("title", "")),
        status=_status(journal, phases, owner),
        config=config,
        phases=phases,
        journal=journal,
        ledger=ledger,
        retention=_retention(run, journal, notes),
        times=_sum(phase_times.values()),
        phase_times=phase_times,
        model=model if model.is_dir() else None,
        owner=owner,
        notes=tuple(notes),
        damaged=damaged,
    )


def _retention(run: Path, journal: Journal, notes: list[str]) -> Mapping[str, Any]:
    """Read the matrix; one that does not match its digest in the journal is not shown."""
    path = run / RETENTION
    expected = journal.latest("retention")
    if expected is None:
        return {}
    if not path.is_file() or file_digest(path) != expected:
        notes.append(
            f"{path}: is not what was written, and not shown; see 'mgk verify {run}'"
        )
        return {}
    table: Mapping[str, Any] = numbers(read_json(path))
    return table


def _status(
    journal: Journal, phases: tuple[PhaseSummary, ...], owner: str | None
) -> Status:
    if owner is not None:
        return "running"
    if journal.last("finished") is not None:
        return "finished"
    if any(p.state == "rolled_back" for p in phases):
        return "refused"
    between = all(p.state != "begun" for p in phases) and any(
        p.state != "waiting" for p in phases
    )
    return "stopped" if between else "unfinished"


def _phases(
    run: Path,
    config: Mapping[str, Any],
    ledger: Ledger | None,
    journal: Journal,
    training: Mapping[str, Training],
) -> Iterator[PhaseSummary]:
    for index, (name, table) in enumerate(config.get("phases", {}).items()):
        entry = ledger.entry(name) if ledger is not None else None
        report = run / phase_folder(index, name) / MERGE
        yield PhaseSummary(
            name=name,
            index=index,
            title=str(table.get("title", "")),
            state=_state(
                entry, begun=journal.last("phase_enter", phase=name) is not None
            ),
            training=training.get(name, Training()),
            entry=entry,
            merge=numbers(read_json(report))
            if entry is not None and report.exists()
            else {},
        )


def _state(entry: PhaseEntry | None, *, begun: bool) -> PhaseState:
    if entry is None:
        return "begun" if begun else "waiting"
    if entry.result == "kept_apart":
        return "kept_apart"
    return "committed" if entry.result == "committed" else "rolled_back"


def _training(run: Path, notes: list[str]) -> dict[str, Training]:
    """Add up the metrics by phase. A line that does not read is left out and noted."""
    found: dict[str, Training] = {}
    for event in read_metrics(run, notes):
        if event.get("event") == "step":
            _add(found.setdefault(str(event.get("phase")), Training()), event)
        elif event.get("event") == "alarm":
            found.setdefault(str(event.get("phase")), Training()).alarms += 1
        elif event.get("event") == "early_stop":
            training = found.setdefault(str(event.get("phase")), Training())
            training.best_step = int(event["best_step"])
    return found


def _resumes_at(journal: Journal, training: dict[str, Training]) -> None:
    """Set the step of an interrupted phase to its checkpoint's: metrics have one step of ten, or go beyond."""
    for entry in reversed(journal.events):
        if entry["event"] not in {"checkpoint", "phase_enter", "resumed"}:
            return
        if entry["event"] == "checkpoint":
            found = training.setdefault(str(entry["phase"]), Training())
            found.step = int(entry["step"])
            return


def _add(training: Training, event: Mapping[str, Any]) -> None:
    training.step, training.steps = int(event["step"]), int(event["steps"])
    if training.first_loss is None:
        training.first_loss = event["loss"]
    training.last_loss = event["loss"]
    training.count += int(event["count"])
    training.seconds += float(event["seconds"])
    training.skipped += int(event["skipped"])
    training.unit = str(event.get("unit", training.unit))
    for key, value in event.items():
        if key.startswith(("rss", "cuda_")):
            training.memory[key] = max(training.memory.get(key, 0), int(value))


def read_metrics(run: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of metrics.jsonl in order; lines that do not read are noted."""
    path = run / METRICS
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                notes.append(
                    f"{path}:{number}: this line does not read and was left out"
                )
                continue
            if isinstance(event, dict):
                yield event


def _times(journal: Journal) -> dict[str, dict[str, float]]:
    """Return phase (``base``, ``finish``) → part of the work → seconds, over all processes."""
    found: dict[str, dict[str, float]] = {}
    for entry in journal.events:
        if isinstance(entry.get("seconds"), dict):
            where = str(
                entry.get("phase", "base" if entry["event"] == "base" else "finish")
            )
            found[where] = _sum([found.get(where, {}), entry["seconds"]])
    return found


def _sum(accounts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for account in accounts:
        for part, seconds in account.items():
            total[part] = total.get(part, 0.0) + float(seconds)
    return total
