"""The run directory: its names, its lock, and whether it may be used."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from mgk_core.errors import InputError, StoreError
from mgk_core.journal import NAME as JOURNAL
from mgk_core.ledger import NAME as LEDGER

LOCK = ".lock"


def phase_folder(index: int, name: str) -> str:
    """Return a phase's folder, relative to the run directory."""
    return f"phases/{index}-{name}"


class Lock:
    """One process at a time on a run directory.

    The system drops the lock with its process, so a stale one cannot block; the owner is written
    into it so that the second process can say who is there.
    """

    def __init__(self, run: Path) -> None:
        path = run / LOCK
        self._path = path
        try:
            self._file: IO[str] = path.open("a+")
        except OSError as error:
            raise StoreError(
                f"{run}: cannot be written: {error.strerror}; choose a directory that you may write to"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{run}: in use by {_owner(path)}; wait for it to end, or choose another --out") from None
        self._file.truncate(0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        self._file.write(json.dumps(owner))
        self._file.flush()

    def release(self) -> None:
        """Give the directory free and remove the lock."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


def owner_of(run: Path) -> str | None:
    """Say who is working on a run now; None where nobody is."""
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


def claim(out: Path) -> None:
    """Make a new run directory; refuse one that holds anything.

    :raises InputError: it is no directory, not empty, or holds a run (says how to go on with it)
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: exists and is no directory; choose another --out")
    if (out / JOURNAL).exists() or (out / LEDGER).exists():
        raise InputError(
            f"{out}: holds a run already; go on with 'mgk resume {out}', see it with 'mgk show {out}', or choose another --out"
        )
    if out.exists() and any(p.name != LOCK for p in out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no run; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{out}: cannot be made: {error.strerror}; choose a directory that you may write to") from None


def require_run(run: Path) -> None:
    """Refuse a directory that is missing or no run's."""
    if not run.exists():
        raise InputError(f"{run}: no such run directory")
    if not run.is_dir() or not (run / JOURNAL).exists():
        raise InputError(f"{run}: no run directory (no {JOURNAL} in it); expected one that 'mgk run --out' wrote")
