"""The few operations that touch the disk, and what a user reads when one of them fails.

`Disk` is the seam at which tests kill, fill, forget and forbid: everything that a run writes goes
through it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mgk_core.contract.errors import EnvironmentFault, StoreError
from mgk_core.contract.files import FIXES, reason


class Disk:
    """The primitive operations. A test's subclass may fail, crash or forget at any of them."""

    def produce(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let ``write`` make a new file at ``path``."""
        write(path)

    def append(self, path: Path, data: bytes) -> None:
        """Append to a file and flush it to the device; what was written of a failed append is cut off."""
        handle = os.open(
            path,
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o666,
        )
        try:
            before = os.fstat(handle).st_size
            try:
                _write_all(handle, data)
                os.fsync(handle)
            except OSError:
                os.ftruncate(
                    handle, before
                )  # half a line in the middle would break the journal's chain
                raise
        finally:
            os.close(handle)

    def sync(self, path: Path) -> None:
        """Flush a file's content, or a folder's entries, to the device."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Move a file or folder to its final name; replaces a file that is there."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Make one folder; what is above it exists already."""
        path.mkdir(exist_ok=True)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to ``size`` bytes and flush it."""
        with path.open("r+b") as file:
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def environment_told() -> Iterator[None]:
    """Turn what the machine refuses inside the block into words, wherever it was."""
    try:
        yield
    except OSError as error:
        if error.errno not in FIXES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise EnvironmentFault(f"{where}{reason(error)}, then try again") from error


class told:  # noqa: N801 - used like a function
    """Report which file could not be written, and what to do, in place of a bare OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        number = _system_error(error)
        if number is None or error is None:
            return
        reason = os.strerror(number) if number else str(error)
        hint = FIXES.get(number, "fix that")
        raise StoreError(
            f"{self.path}: cannot be written: {reason}; {hint}, then continue with 'mgk resume'"
        ) from error


def _system_error(error: BaseException | None) -> int | None:
    """Return the system's error number (0: it gave none), or None where it is not a failure to write."""
    if isinstance(error, OSError):
        return error.errno or 0
    if isinstance(error, SafetensorError) and (
        found := re.search(r"os error (\d+)", str(error))
    ):
        return int(found[1])
    return None


def _write_all(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
