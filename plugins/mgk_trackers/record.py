"""What a tracker is given of a run, read from the run's own files."""

from __future__ import annotations

import json
import math
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, frozen

from mgk_core.contract.context import FILES
from mgk_core.contract.json_numbers import numbers

STATE = "trackers.json"


@frozen
class Table:
    """The retention matrix: a row for each measurement, a column for each probe."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def markdown(self) -> str:
        """Return it as a Markdown table."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(map(_shown, row)) + " |" for row in lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@define
class Record:
    """One run as a tracker knows it. key: its own for ever, so that a resumed run finds its record.

    logged: tracker → phase → last step that was sent. A resumed run repeats steps with the same
    bits, so they are sent once.
    """

    run: Path
    name: str
    project: str
    key: str
    config: dict[str, Any]
    logged: dict[str, dict[str, int]]

    @classmethod
    def of(cls, run: Path) -> Record:
        """Read a run directory; a run that is tracked for the first time gets a key."""
        config = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
        project = str(config.get("name", "mgk"))
        path = run / FILES / STATE
        if path.is_file():
            state = json.loads(path.read_bytes())
        else:
            state = {"key": secrets.token_hex(4), "logged": {}}
        found = cls(run, run.name, project, state["key"], flat(config), state["logged"])
        found.save()
        return found

    @property
    def files(self) -> Path:
        """A folder that mgk neither records nor verifies."""
        folder = self.run / FILES
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def label(self) -> str:
        """The run's name with its key: two runs of one name stay apart."""
        return f"{self.name}-{self.key}"

    def is_new(self, tracker: str, phase: str, step: int) -> bool:
        """Whether a step has not been sent to a tracker yet."""
        return step > self.logged.get(tracker, {}).get(phase, -1)

    def sent(self, tracker: str, phase: str, step: int) -> None:
        """Remember that a step has been sent."""
        self.logged.setdefault(tracker, {})[phase] = step
        self.save()

    def save(self) -> None:
        """Write what a later process needs."""
        text = json.dumps({"key": self.key, "logged": self.logged}, indent=1)
        path = self.files / STATE
        new = path.with_name(f".tmp-{STATE}")
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(path)

    def matrix(self) -> tuple[Table, list[dict[str, float]]]:
        """Return the retention matrix, and each of its rows as scalars."""
        found = _json(self.run / "retention.json")
        names = [f"{p['name']}.{p['metric']}" for p in found.get("probes", ())]
        rows, scalars = [], []
        for row, values in zip(found.get("rows", ()), found.get("R", ()), strict=True):
            numbers = [float(v) if v is not None else None for v in values]
            rows.append((row["name"], *numbers))
            pairs = zip(names, numbers, strict=True)
            scalars.append({k: v for k, v in pairs if v is not None})
        return Table(("row", *names), tuple(rows)), scalars

    def digests(self) -> dict[str, str]:
        """Return the ledger's digests: of the base, and of the weights after each phase."""
        ledger = _json(self.run / "ledger.json")
        found = {"ledger/base": str(ledger.get("base", ""))}
        for entry in ledger.get("phases", ()):
            after = entry["merged"] or entry["result"]
            found[f"ledger/{entry['phase']}"] = str(after)
        return found


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: Mapping[str, Any] = numbers(json.loads(path.read_bytes()))
    return found


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def scalars_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Return what an event measures, by name; empty for one that measures nothing."""
    kind = event["event"]
    names = {
        "step": ("loss", "terms", "grad_norm", "lr", "per_second", "rss", "cuda_peak"),
        "dev": ("loss",),
        "drift": ("drift", "relative"),
    }.get(kind, ())
    prefix = "dev_" if kind == "dev" else ""
    found = {prefix + name: event.get(name) for name in names}
    found |= event.get("figures") or {}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
