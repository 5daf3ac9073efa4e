"""What a phase writes: a protocol, a run directory that keeps it, and memory that does.

`PhaseRun` and `Transition` know only the protocol, so a phase runs in a notebook or a benchmark as it
runs in a run directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field
from torch import Tensor

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import Score
from mgk_core.contract.context import FILES, StepFn
from mgk_core.record.adapter_files import save_adapter
from mgk_core.record.checkpoint import Progress, list_checkpoints, save_checkpoint
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import PhaseEntry
from mgk_core.record.run_directory import ADAPTER, CHECKPOINT, MERGE, SCORES
from mgk_core.record.store import TEMPORARY, Store, file_digest, folder_digests
from mgk_core.run.scores import load_row, save_row

Row = Mapping[str, Score]


@define(eq=False)
class CheckpointParts:
    """The parts of a phase that a checkpoint needs."""

    progress: Progress
    adapter: Adapter
    step: StepFn
    best: dict[str, Tensor] | None


class PhaseRecord(Protocol):
    """Where one phase keeps what it does and makes."""

    @property
    def directory(self) -> Path:
        """The folder that hooks get as ``ctx.directory``; it exists."""

    def note(self, event: str, **data: Any) -> None:
        """Note what was done, in order."""

    def scores(self, digest: str) -> Row | None:
        """Return the row that was measured on weights of this digest, if one was written."""

    def write_scores(self, row: Row, digest: str, **marks: Any) -> None:
        """Keep the phase's row."""

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors: ``statistics``, ``residual`` or ``transformed``."""

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Keep what the merge did."""

    def write_adapter(
        self, adapter: Adapter, state: Mapping[str, Tensor], keys: Mapping[str, Any]
    ) -> None:
        """Keep the adapter. state: its tensors, on any device. keys: what PEFT's file adds."""

    def save_checkpoint(self, parts: CheckpointParts, device: Any, keep: int) -> None:
        """Keep all that is needed to continue training, where this record can be resumed from."""

    def last_checkpoint(self) -> int | None:
        """Return the step of the newest checkpoint, None where there is none."""

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a phase that has ended."""

    def files(self) -> dict[str, str]:
        """Return name → digest of every file, for the ledger."""

    def commit(self, entry: PhaseEntry) -> None:
        """Make the phase's end final."""


@define(eq=False)
class DirectoryRecord:
    """A phase's folder in a run directory. finish: commits the ledger with a new entry."""

    store: Store
    journal: Journal
    folder: str
    finish: Callable[[PhaseEntry], None]

    @property
    def directory(self) -> Path:
        """See `PhaseRecord`."""
        return self.store.path(self.folder)

    def note(self, event: str, **data: Any) -> None:
        """See `PhaseRecord`."""
        self.journal.add(event, **data)

    def scores(self, digest: str) -> Row | None:
        """See `PhaseRecord`."""
        return load_row(self.store.path(f"{self.folder}/{SCORES}"), digest)

    def write_scores(self, row: Row, digest: str, **marks: Any) -> None:
        """See `PhaseRecord`."""
        save_row(self.store, f"{self.folder}/{SCORES}", row, digest=digest, marks=marks)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """See `PhaseRecord`."""
        self.store.write_tensors(f"{self.folder}/{name}", tensors)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """See `PhaseRecord`."""
        self.store.write_json(f"{self.folder}/{MERGE}", report)

    def write_adapter(
        self, adapter: Adapter, state: Mapping[str, Tensor], keys: Mapping[str, Any]
    ) -> None:
        """See `PhaseRecord`."""
        self.store.write_folder(
            f"{self.folder}/{ADAPTER}",
            lambda where: save_adapter(where, adapter, state, keys),
        )

    def save_checkpoint(self, parts: CheckpointParts, device: Any, keep: int) -> None:
        """See `PhaseRecord`."""
        save_checkpoint(
            self.store,
            f"{self.folder}/{CHECKPOINT}",
            parts.progress,
            parts.adapter,
            parts.step,
            parts.best,
            device,
            keep=keep,
        )

    def last_checkpoint(self) -> int | None:
        """See `PhaseRecord`."""
        paths = list_checkpoints(self.store.path(f"{self.folder}/{CHECKPOINT}"))
        return int(paths[-1].name.removeprefix("step-")) if paths else None

    def remove_checkpoints(self) -> None:
        """See `PhaseRecord`."""
        self.store.remove(f"{self.folder}/{CHECKPOINT}")

    def files(self) -> dict[str, str]:
        """See `PhaseRecord`."""
        root = self.store.root
        found: dict[str, str] = {}
        for path in sorted(self.directory.iterdir()):
            if path.name.startswith(TEMPORARY) or path.name in (CHECKPOINT, FILES):
                continue
            if path.is_dir():
                found |= folder_digests(root, path)
            else:
                found[str(path.relative_to(root))] = file_digest(path)
        return found

    def commit(self, entry: PhaseEntry) -> None:
        """See `PhaseRecord`."""
        self.finish(entry)


@define(eq=False)
class MemoryRecord:
    """A phase in memory; it cannot be resumed.

    notes: (event, data) in order. tensors: ``statistics``, ``residual``, ``transformed``. The
    folder for hooks is a temporary one, which `close` removes.
    """

    notes: list[tuple[str, dict[str, Any]]] = field(factory=list)
    row: Row = field(factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(factory=dict)
    report: Mapping[str, Any] = field(factory=dict)
    adapter: dict[str, Tensor] = field(factory=dict)
    entry: PhaseEntry | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def directory(self) -> Path:
        """See `PhaseRecord`."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mgk-phase-")
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def note(self, event: str, **data: Any) -> None:
        """See `PhaseRecord`."""
        self.notes.append((event, data))

    def scores(self, digest: str) -> Row | None:
        """Return None: nothing is resumed from memory."""

    def write_scores(self, row: Row, digest: str, **marks: Any) -> None:
        """See `PhaseRecord`."""
        self.row = row

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """See `PhaseRecord`."""
        self.tensors[name] = _copies(tensors)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """See `PhaseRecord`."""
        self.report = report

    def write_adapter(
        self, adapter: Adapter, state: Mapping[str, Tensor], keys: Mapping[str, Any]
    ) -> None:
        """See `PhaseRecord`."""
        self.adapter = _copies(state)

    def save_checkpoint(self, parts: CheckpointParts, device: Any, keep: int) -> None:
        """Keep nothing."""

    def last_checkpoint(self) -> int | None:
        """Return None: there are no checkpoints."""

    def remove_checkpoints(self) -> None:
        """Remove nothing."""

    def files(self) -> dict[str, str]:
        """Return nothing: there are no files."""
        return {}

    def commit(self, entry: PhaseEntry) -> None:
        """See `PhaseRecord`."""
        self.entry = entry


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
