"""metrics.jsonl: what happened step by step, cheap to write, cut back to a checkpoint at resume.

Lines are buffered and not flushed to the device one by one: whatever a crash loses is written
again when the run goes on from its last checkpoint, where the file's length is on record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BufferedWriter
from typing import Any

from mgk_core.store import Store

NAME = "metrics.jsonl"


class MetricsLog:
    """An append-only file of JSON lines with a known, durable length at each checkpoint."""

    def __init__(self, store: Store, *, length: int | None = None) -> None:
        """:param length: cut the file to this many bytes first (resume)."""
        path = store.path(NAME)
        if length is not None and path.exists() and path.stat().st_size > length:
            store.disk.truncate(path, length)
        self._file: BufferedWriter = path.open("ab")

    def write(self, event: Mapping[str, Any]) -> None:
        """Buffer one event."""
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")

    def flush(self) -> None:
        """Hand the lines to the system, so that they survive the process."""
        self._file.flush()

    def sync(self) -> int:
        """Bring all lines to the device; return the file's length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            self.sync()
            self._file.close()
