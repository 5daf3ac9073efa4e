"""What a report shows of one run, read from the files that docs/reference/run-directory.md names.

Needs no model and no other plugin, and writes nothing: a copy of a run, or one that another machine
is writing to, is read just as well. What cannot be read is noted and left out.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from mgk_core.contract.errors import InputError
from mgk_core.contract.json_numbers import numbers

Table = Mapping[str, Any]
Status = Literal["finished", "refused", "unfinished"]


@frozen
class Setting:
    """One line of run.toml: dotted key, value as written, and where it came from."""

    key: str
    value: str
    source: str


@frozen
class Phase:
    """One phase. entry: its row of the ledger, None before its end. items: probe → per-item scores."""

    name: str
    index: int
    title: str
    entry: Table | None
    merge: Table
    events: Sequence[Table]
    scores: Sequence[Table]

    @property
    def steps(self) -> list[Table]:
        """The training steps that were recorded."""
        return [event for event in self.events if event["event"] == "step"]

    @property
    def result(self) -> str:
        """``committed``, ``kept_apart``, ``rolled_back``, ``training`` or ``waiting``."""
        if self.entry is not None:
            return str(self.entry["result"])
        return "training" if self.events else "waiting"


@frozen
class Run:
    """A run directory as read. notes: what could not be read, and why."""

    directory: Path
    name: str
    title: str
    base: Table
    phases: Sequence[Phase]
    settings: Sequence[Setting]
    retention: Table
    ledger: Table
    journal: Sequence[Table]
    scores: Sequence[Table] = ()
    notes: list[str] = field(factory=list)

    @property
    def status(self) -> Status:
        """How far the run has come."""
        if any(event["event"] == "finished" for event in self.journal):
            return "finished"
        refused = any(phase.result == "rolled_back" for phase in self.phases)
        return "refused" if refused else "unfinished"

    def seconds(self) -> list[dict[str, Any]]:
        """Return the seconds of each part of the work, phase by phase, over all processes."""
        found: dict[tuple[str, str], float] = {}
        for event in self.journal:
            where = str(
                event.get("phase", "start" if event["event"] == "base" else "end")
            )
            if event["event"] != "prepare":
                for part, seconds in event.get("seconds", {}).items():
                    found[where, part] = found.get((where, part), 0.0) + float(seconds)
        return [{"phase": p, "part": k, "seconds": s} for (p, k), s in found.items()]


def read(directory: Path) -> Run:
    """Read a run directory.

    :raises InputError: it is not a run directory
    """
    path = directory / "run.toml"
    if not path.is_file():
        raise InputError(f"{directory}: not a run directory (it has no run.toml)")
    notes: list[str] = []
    text = path.read_text(encoding="utf-8")
    config = tomllib.loads(text)
    ledger = _json(directory / "ledger.json", notes)
    events = _lines(directory / "metrics.jsonl", notes)
    return Run(
        directory=directory,
        name=str(config.get("name", directory.name)),
        title=str(config.get("title", "")),
        base=config.get("base", {}),
        phases=_phases(directory, config, ledger, events, notes),
        settings=_settings(text),
        retention=numbers(_json(directory / "retention.json", notes)),
        ledger=ledger,
        journal=_lines(directory / "journal.jsonl", notes),
        scores=_scores(directory / "base" / "scores.json", notes),
        notes=notes,
    )


def _phases(
    directory: Path,
    config: Table,
    ledger: Table,
    events: Sequence[Table],
    notes: list[str],
) -> list[Phase]:
    entries = {entry["phase"]: entry for entry in ledger.get("phases", ())}
    phases = []
    for index, (name, table) in enumerate(config.get("phases", {}).items()):
        folder = directory / "phases" / f"{index}-{name}"
        phases.append(
            Phase(
                name=name,
                index=index,
                title=str(table.get("title", "")),
                entry=entries.get(name),
                merge=numbers(_json(folder / "merge.json", notes)),
                events=[event for event in events if event.get("phase") == name],
                scores=_scores(folder / "scores.json", notes),
            )
        )
    return phases


def _scores(path: Path, notes: list[str]) -> Sequence[Table]:
    found: Sequence[Table] = numbers(_json(path, notes)).get("scores", [])
    return found


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    """Read one file; {} where it is absent, and a note where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name}: cannot be read and is not shown ({error})")
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path, notes: list[str]) -> list[Table]:
    """Read a file of one event a line; a line that cannot be parsed (a run is writing it) is noted."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            notes.append(f"{path.name}:{number}: could not parse this line; skipped")
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(numbers(event))
    return found


def _settings(text: str) -> list[Setting]:
    """Return each key of run.toml with its source, which the run wrote behind the value as a comment."""
    found, table = [], ""
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            table = line.strip("[]") + "."
        elif " = " in line and not line.startswith("#"):
            key, rest = line.split(" = ", 1)
            value, mark, source = rest.rpartition(" # ")
            found.append(
                Setting(table + key, value if mark else rest, source if mark else "")
            )
    return found


def drawable(value: Any) -> Any:
    """Return plain data for a chart: what is not finite becomes None, which is drawn as a gap."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: drawable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [drawable(v) for v in value]
    return value
