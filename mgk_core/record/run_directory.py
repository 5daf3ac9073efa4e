"""The run directory: its names, its lock, and whether it may be used."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mgk_core.contract.context import FILES
from mgk_core.contract.errors import InputError, StoreError
from mgk_core.contract.files import reason
from mgk_core.record.disk import Disk, told
from mgk_core.record.store import TEMPORARY, make_folder

# What a run directory contains.
LOCK = ".lock"
CONFIG = "run.toml"
JOURNAL = "journal.jsonl"
LEDGER = "ledger.json"
METRICS = "metrics.jsonl"
RETENTION = "retention.json"
MODEL = "model"
BASE = "base"
PHASES = "phases"

REPORT = "report.html"
UNRECORDED = (REPORT, f"{FILES}/*", f"{PHASES}/*/{FILES}/*")
"""Patterns of what plugins write for themselves, at any time: on no record, and not verified."""

# What the folder of a phase contains; that of the base has the first two.
SCORES = "scores.json"
STATISTICS = "statistics.safetensors"
MERGE = "merge.json"
RESIDUAL = "residual.safetensors"
TRANSFORMED = "transformed.safetensors"
ADAPTER = "adapter"
CHECKPOINT = "checkpoint"


def phase_folder(index: int, name: str) -> str:
    """Return a phase's folder, relative to the run directory."""
    return f"{PHASES}/{index}-{name}"


class Lock:
    """One process at a time on a run directory.

    The system drops the lock with its process, so a stale one cannot block; the owner is written
    into it so that the second process can name it. stale: who left the file behind.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / LOCK
        self._file = self._take(run)
        self.stale = (
            _owner(self._path) if os.fstat(self._file.fileno()).st_size else None
        )
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        with told(self._path):
            self._file.truncate(0)
            self._file.write(json.dumps(owner))
            self._file.flush()

    def _take(self, run: Path) -> IO[str]:
        """Return the locked file; look again for a moment, since asking for the owner locks it too."""
        for last in (*[False] * 20, True):
            with told(self._path):
                flags = (
                    os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                )
                file = os.fdopen(os.open(self._path, flags, 0o666), "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(file):
                    return file
            except BlockingIOError:
                file.close()
                if last:
                    raise InputError(
                        f"{run}: in use by {_owner(self._path)}; wait for it to end, or end that process"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                file.close()
                raise StoreError(
                    f"{run}: its file system cannot lock files ({error.strerror}); choose another --out"
                ) from error
            file.close()
        raise InputError(f"{run}: in use by another process; wait for it to end")

    def _is_current(self, file: IO[str]) -> bool:
        """Whether the file is still the one of that name: its owner removes it before letting go."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        return False

    def release(self) -> None:
        """Give the directory free and remove the lock."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


def owner_of(run: Path) -> str | None:
    """Return who is working on a run now; None where no process is."""
    path = run / LOCK
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return _owner(path)
    return None


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def claim(
    out: Path, disk: Disk | None = None, *, option: str = "--out"
) -> tuple[Path, ...]:
    """See that a new run may be written here; make the directory. Returns what was made, the outermost first.

    :raises InputError: it is not a directory, not empty, or contains a run (explains how to resume it)
    """
    fresh = not os.path.lexists(out)
    try:
        missing = tuple(
            p for p in (*reversed(out.parents), out) if not os.path.lexists(p)
        )
        if not fresh and (out.is_symlink() or not out.is_dir()):
            raise InputError(
                f"{out}: exists and is not a directory; choose another {option}"
            )
        if any((out / name).exists() for name in (JOURNAL, LEDGER, CONFIG)):
            raise InputError(
                f"{out}: contains a run already; resume it with 'mgk resume {out}', see it with 'mgk show {out}',"
                f" or choose another {option}"
            )
        if not fresh and any(
            p.name != LOCK and not p.name.startswith(TEMPORARY) for p in out.iterdir()
        ):
            raise InputError(
                f"{out}: is not empty, and what it contains is not a run; choose another {option}"
            )
        make_folder(out, disk or Disk())
    except OSError as error:
        raise StoreError(
            f"{out}: cannot be made: {reason(error, 'choose a directory that you may write to')}"
        ) from None
    return missing


@contextlib.contextmanager
def told_if_gone(run: Path) -> Iterator[None]:
    """Report that the run directory is gone where that is why the work inside the block has failed.

    Its configuration is the first file that is written, and nothing removes it while a run works.
    """
    try:
        yield
    except Exception as error:
        if (run / CONFIG).exists():
            raise
        raise StoreError(
            f"{run}: the run directory is gone: it was removed or moved during this run; move it back"
            f" and continue with 'mgk resume {run}', or start again with 'mgk run'"
        ) from error


def require_run(run: Path) -> None:
    """Refuse a directory that is missing or no run's."""
    try:
        if not run.exists():
            raise InputError(
                f"{run}: no such run directory; expected one that 'mgk run --out' wrote"
            )
        if not run.is_dir() or not (
            (run / JOURNAL).exists() or (run / CONFIG).exists()
        ):
            raise InputError(
                f"{run}: no run directory (no {JOURNAL} in it); expected one that 'mgk run --out' wrote"
            )
    except OSError as error:
        raise InputError(
            f"{run!s:.100}: cannot be a run directory: {error.strerror}; give one that 'mgk run --out' wrote"
        ) from None
