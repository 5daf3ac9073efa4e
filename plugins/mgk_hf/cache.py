"""Where converted models are kept, and how a directory appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgk_core.contract.cache import VARIABLE
from mgk_core.contract.errors import EnvironmentFault


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``target`` when the block ends without an error.

    Another process may finish first: its directory then stays and ours is dropped, since both
    hold the same content. After an error nothing is left behind.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
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
