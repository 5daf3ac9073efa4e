"""Where converted models are kept, and how a directory appears there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgk_core.contract.cache import VARIABLE
from mgk_core.contract.errors import EnvironmentFault

JUST_MADE = 5.0
"""Seconds in which a directory belongs to whoever made it, locked or not."""


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``target`` when the block ends without an error.

    Another process may finish first: its directory then stays and ours is dropped, since both
    hold the same content. After an error nothing is left behind, and what a killed process left is
    removed by the next one.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        lock = _locked(work)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write the cache {target.parent}: {error.strerror}; set {VARIABLE} to a writable directory"
        ) from error
    try:
        yield work
        _sync(work)
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep(target: Path) -> None:
    """Remove unfinished directories that no living process holds; one may be half a gigabyte."""
    for left in target.parent.glob(f".{target.name}.*"):
        # One that was just made may not be locked yet.
        if time.time() - left.stat().st_mtime > JUST_MADE and (
            (lock := _locked(left)) is not None
        ):
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _locked(directory: Path) -> int | None:
    """Lock a directory until the descriptor is closed, at the latest by this process's end; None: taken."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _move(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _sync(directory: Path) -> None:
    """Flush every file, so that a rename never publishes a directory of empty files."""
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
