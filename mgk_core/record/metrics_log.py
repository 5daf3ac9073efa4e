"""metrics.jsonl: what happened step by step, cheap to write, cut back to a mark at resume.

Lines are buffered and not flushed to the device one by one: whatever a crash loses is written
again when the run resumes from its last mark, where the file's length and digest are on record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

from attrs import frozen

from mgk_core.contract.json_numbers import finite
from mgk_core.record.disk import told
from mgk_core.record.run_directory import METRICS
from mgk_core.record.store import Store

_BLOCK = 2**20


@frozen
class Mark:
    """How far the file is known to be whole. length: bytes. digest: BLAKE2b-128 of them."""

    length: int = 0
    digest: str = hashlib.blake2b(digest_size=16).hexdigest()


def digest_of(path: Path, length: int) -> str:
    """Digest of a file's first ``length`` bytes; an error where it has fewer."""
    state, left = hashlib.blake2b(digest_size=16), length
    if path.exists():
        with path.open("rb") as file:
            while left and (block := file.read(min(left, _BLOCK))):
                state.update(block)
                left -= len(block)
    return f"cut short by {left} bytes" if left else state.hexdigest()


class MetricsLog:
    """An append-only file of JSON lines, whose length and digest are known at each mark."""

    def __init__(self, store: Store, length: int = 0) -> None:
        """:param length: cut the file to this many bytes first: what comes after will be written again."""
        self._store, self._path = store, store.path(METRICS)
        self._state = hashlib.blake2b(digest_size=16)
        self._length = (
            min(length, self._path.stat().st_size) if self._path.exists() else 0
        )
        if self._path.exists():
            store.truncate(METRICS, self._length)
            with self._path.open("rb") as file:
                while block := file.read(_BLOCK):
                    self._state.update(block)
        with told(self._path):
            self._file: BufferedWriter = self._path.open("ab")
            store.disk.sync(self._path.parent)

    def write(self, event: Mapping[str, Any]) -> None:
        """Buffer one event."""
        line = (
            json.dumps(finite(event), ensure_ascii=False, allow_nan=False).encode()
            + b"\n"
        )
        self._state.update(line)
        self._length += len(line)
        with told(self._path):
            self._file.write(line)

    def flush(self) -> None:
        """Hand the lines to the system, so that they survive the process."""
        with told(self._path):
            self._file.flush()

    def sync(self) -> Mark:
        """Bring all lines to the device; return how far the file is whole."""
        self.flush()
        with told(self._path):
            self._store.disk.sync(self._path)
        return Mark(self._length, self._state.hexdigest())

    def close(self) -> None:
        """Sync and close; after a failed write only close, for the lines are written again at resume."""
        if self._file.closed:
            return
        try:
            self.sync()
        finally:
            with told(self._path):
                self._file.close()
