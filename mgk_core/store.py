"""How files are written so that nothing is lost: temporary name, fsync, rename, fsync of the folder.

`Disk` holds the few operations that touch the file system; tests drive faults through it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgk_core.errors import StoreError

TEMPORARY = ".tmp-"


class Disk:
    """The primitive operations. A test's subclass may fail, crash or forget at any of them."""

    def produce(self, path: Path, write: Callable[[Path], None]) -> None:
        """Let ``write`` make a new file at ``path``."""
        write(path)

    def append(self, path: Path, data: bytes) -> None:
        """Append to a file and flush it to the device."""
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, path: Path) -> None:
        """Flush a file's content to the device."""
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Flush a folder's entries to the device."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Move a file or folder to its final name; replaces a file that stands there."""
        old.replace(new)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Make a folder and what is above it."""
        path.mkdir(parents=True, exist_ok=True)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to ``size`` bytes and flush it."""
        with path.open("r+b") as file:
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())


@define(eq=False)
class Store:
    """Writes below one root, each file whole or not at all."""

    root: Path
    disk: Disk = field(factory=Disk)

    def path(self, name: str) -> Path:
        """Return the absolute path of a name; one that leaves the root is refused."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise StoreError(f"{name!r} would leave the run directory {self.root}")
        return path

    def write(self, name: str, produce: Callable[[Path], None]) -> Path:
        """Write one file atomically; ``produce`` gets the temporary path."""
        final = self.path(name)
        temporary = final.with_name(TEMPORARY + final.name)
        with _told(final):
            self.disk.make_folder(final.parent)
            self.disk.produce(temporary, produce)
            self.disk.sync(temporary)
            self.disk.rename(temporary, final)
            self.disk.sync_folder(final.parent)
        return final

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, UTF-8."""
        return self.write(name, lambda path: _put(path, text.encode()))

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON, indented, keys in the order given; NaN and inf are refused."""
        return self.write_text(name, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
        """Write safetensors. Tensors are made contiguous; those that share storage are copied."""
        ready = {k: v.detach().contiguous().clone() if v._is_view() else v.detach().contiguous() for k, v in tensors.items()}  # noqa: SLF001 - the public way to ask does not exist
        return self.write(name, lambda path: save_file(ready, path, dict(metadata or {})))

    def write_folder(self, name: str, produce: Callable[[Path], None]) -> Path:
        """Write a whole folder atomically: made under a temporary name, synced, renamed."""
        final = self.path(name)
        temporary = final.with_name(TEMPORARY + final.name)
        with _told(final):
            if temporary.exists():
                self.disk.remove(temporary)
            self.disk.make_folder(temporary)
            self.disk.produce(temporary, produce)
            for path in sorted(temporary.rglob("*")):
                if path.is_file():
                    self.disk.sync(path)
            for path in sorted([temporary, *(p for p in temporary.rglob("*") if p.is_dir())], reverse=True):
                self.disk.sync_folder(path)
            if final.exists():
                self.disk.remove(final)
            self.disk.rename(temporary, final)
            self.disk.sync_folder(final.parent)
        return final

    def append(self, name: str, line: str) -> None:
        """Append one line and flush it."""
        path = self.path(name)
        with _told(path):
            self.disk.append(path, line.encode() + b"\n")

    def remove(self, name: str) -> None:
        """Remove a file or folder."""
        path = self.path(name)
        with _told(path):
            self.disk.remove(path)

    def sweep(self) -> list[str]:
        """Remove what an interrupted write left under a temporary name; return what it was."""
        left = sorted(p for p in self.root.rglob(TEMPORARY + "*"))
        for path in left:
            if path.exists():
                self.disk.remove(path)
        return [str(p.relative_to(self.root)) for p in left]


class _told:  # noqa: N801 - used like a function
    """Say which file could not be written, and what to do, in place of a bare OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError) and "os error" in str(error).lower():
            raise StoreError(f"{self.path}: cannot be written: {error}") from error
        if not isinstance(error, OSError):
            return
        reason = error.strerror or str(error)
        mend = {28: "free some space", 122: "free some space", 30: "choose a directory that can be written", 13: "choose a directory that you may write to", 24: "raise the limit of open files (ulimit -n)"}
        hint = mend.get(error.errno or 0, "mend that")
        raise StoreError(f"{self.path}: cannot be written: {reason}; {hint}, then go on with 'mgk resume'") from error


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def read_json(path: Path) -> Any:
    """Read JSON; a `StoreError` names a missing or damaged file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: is damaged: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; a `StoreError` names a missing or damaged file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read as safetensors: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata without its tensors."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read as safetensors: {error}") from None


def file_digest(path: Path) -> str:
    """Return a file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(root: Path, folder: Path) -> dict[str, str]:
    """Return path (relative to ``root``) → sha256 of every file below ``folder``."""
    return {str(p.relative_to(root)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
