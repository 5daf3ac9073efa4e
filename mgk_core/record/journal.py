"""The append-only record of what a run has done: one JSON object a line, hash-chained.

Each line carries the hash of the one before and its own, so that a changed, lost or reordered
line is found. A torn last line is what a crash leaves; it is cut off when the journal is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from attrs import define, field

from mgk_core.contract.errors import StoreError
from mgk_core.contract.files import read_bytes
from mgk_core.contract.json_numbers import finite
from mgk_core.record.run_directory import JOURNAL
from mgk_core.record.store import Store

START = "0" * 32


@define(eq=False)
class Journal:
    """Events of a run, in order. torn: bytes of a last line that a crash cut short, left in the file."""

    store: Store
    events: list[dict[str, Any]] = field(factory=list)
    torn: int = 0

    def add(self, event: str, **data: Any) -> dict[str, Any]:
        """Append one event; on return it is on the device."""
        entry = self.store.world.lead(lambda: self._append(event, data))
        self.events.append(entry)
        return entry

    def _append(self, event: str, data: dict[str, Any]) -> dict[str, Any]:
        entry = {
            "n": len(self.events),
            "event": event,
            **finite(data),
            "prev": self.head,
        }
        entry["hash"] = _hash(entry)
        self.store.append(
            JOURNAL, json.dumps(entry, ensure_ascii=False, allow_nan=False)
        )
        return entry

    @property
    def head(self) -> str:
        """Hash of the last event."""
        return str(self.events[-1]["hash"]) if self.events else START

    def last(self, event: str, **match: Any) -> dict[str, Any] | None:
        """Return the latest event of a kind whose data match."""
        entry: dict[str, Any]
        for entry in reversed(self.events):
            if entry["event"] == event and match.items() <= entry.items():
                return entry
        return None

    def latest(self, key: str) -> Any:
        """Return what the latest event that has this key has under it; None where no event has it."""
        return next(
            (entry[key] for entry in reversed(self.events) if key in entry), None
        )


def _hash(entry: dict[str, Any]) -> str:
    text = json.dumps(
        {k: v for k, v in entry.items() if k != "hash"},
        ensure_ascii=False,
        sort_keys=True,
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def open_journal(store: Store, *, repair: bool = True) -> Journal:
    """Read a run's journal whole; a torn last line is cut off where ``repair``.

    :raises StoreError: a line is damaged; names it
    """
    journal = Journal(store)
    journal.events, journal.torn = store.world.lead(
        lambda: _read(Journal(store), repair=repair)
    )
    return journal


def _read(journal: Journal, *, repair: bool) -> tuple[list[dict[str, Any]], int]:
    """Return all events, and how many bytes of a torn last line stay in the file."""
    store = journal.store
    path = store.path(JOURNAL)
    if not os.path.lexists(path):
        return [], 0
    data = read_bytes(path)
    good = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        entry = _parse(line)
        if entry is None and good + len(line) >= len(data) and _torn(line):
            break
        if (
            entry is None
            or entry.get("prev") != journal.head
            or entry.get("n") != len(journal.events)
        ):
            raise StoreError(
                f"{path}:{number}: the journal is damaged here (its chain of hashes breaks); restore the file from a"
                " copy, or run the phases again from the last sound one with 'mgk phase RUN PHASE --out DIR'"
            )
        journal.events.append(entry)
        good += len(line)
    journal.torn = len(data) - good
    if repair and journal.torn:
        store.truncate(JOURNAL, good)
        journal.torn = 0
    return journal.events, journal.torn


def _torn(line: bytes) -> bool:
    """Distinguish what a crash leaves (a line cut short, or blocks that were never written) from damage."""
    return not line.endswith(b"\n") or b"\0" in line


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
        sound = (
            isinstance(entry, dict)
            and "event" in entry
            and entry.get("hash") == _hash(entry)
        )
    except (ValueError, RecursionError):
        return None
    return dict(entry) if sound else None
