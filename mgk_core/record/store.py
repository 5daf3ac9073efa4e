"""How files are written so that nothing is lost: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field
from safetensors.torch import save_file
from torch import Tensor

from mgk_core.contract.errors import StoreError
from mgk_core.contract.json_numbers import finite
from mgk_core.contract.world import ALONE, World
from mgk_core.record.disk import Disk, told

TEMPORARY = ".tmp-"


@define(eq=False)
class Store:
    """Writes below one root, each file whole or not at all.

    `stands`: the root exists already; where it is gone, it is not made again. world: its leader alone
    writes, while the other ranks wait; a write that fails raises on all of them.
    """

    root: Path
    disk: Disk = field(factory=Disk)
    stands: bool = False
    world: World = ALONE

    def path(self, name: str) -> Path:
        """Return the path of a name; one that leaves the root, also through a link, is refused."""
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(
                f"{name!r} would leave the run directory {self.root}; remove the link or the '..' in it"
            )
        return path

    def write(self, name: str, produce: Callable[[Path], None]) -> Path:
        """Write one file atomically; ``produce`` gets the temporary path."""
        return self._write(name, produce, folder=False)

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, UTF-8."""
        return self.write(name, lambda path: put_text(path, text))

    def write_json(self, name: str, value: Any) -> Path:
        """Write JSON; see `json_text`."""
        return self.write_text(name, json_text(value))

    def write_tensors(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write safetensors. Tensors are made contiguous; those that share storage are copied."""
        return self.write(name, lambda path: put_tensors(path, tensors, metadata))

    def write_folder(self, name: str, produce: Callable[[Path], None]) -> Path:
        """Write a whole folder atomically: made under a temporary name, synced, renamed."""
        return self._write(name, produce, folder=True)

    def make_folder(self, name: str) -> Path:
        """Make a folder, and those above it down from the root."""
        path = self.path(name)
        self.world.lead(lambda: self._make_folder(path))
        return path

    def _make_folder(self, path: Path) -> None:
        with told(path):
            if self.stands:
                self.root.stat()
            make_folder(path, self.disk)

    def _write(
        self, name: str, produce: Callable[[Path], None], *, folder: bool
    ) -> Path:
        final = self.path(name)
        self.world.lead(lambda: self._replace(final, produce, folder=folder))
        return final

    def _replace(
        self, final: Path, produce: Callable[[Path], None], *, folder: bool
    ) -> None:
        temporary = final.with_name(TEMPORARY + final.name)
        with told(final):
            if self.stands:
                self.root.stat()
            make_folder(final.parent, self.disk)
            self._clear(temporary)
            try:
                if folder:
                    self.disk.make_folder(temporary)
                self.disk.produce(temporary, produce)
                self._sync_all(temporary)
                if folder:
                    self._put_aside(final)
                self.disk.rename(temporary, final)
            except BaseException:
                with contextlib.suppress(
                    OSError
                ):  # the first error is the one to tell; sweep() finds what stays
                    self._clear(temporary)
                raise
            self.disk.sync(final.parent)

    def _sync_all(self, path: Path) -> None:
        """Bring a file, or a folder with all in it, to the device; contents before the entries that name them."""
        if path.is_dir():
            for inner in sorted(path.iterdir()):
                self._sync_all(inner)
        else:
            _as_readable_as_others(path)
        self.disk.sync(path)

    def _clear(self, path: Path) -> None:
        if os.path.lexists(path):
            self.disk.remove(path)

    def _put_aside(self, path: Path) -> None:
        """Move a folder out of the way in one step, then remove it: it is never there in part."""
        if os.path.lexists(path):
            aside = path.with_name(f"{TEMPORARY}old-{path.name}")
            self._clear(aside)
            self.disk.rename(path, aside)
            self.disk.remove(aside)

    def append(self, name: str, line: str) -> None:
        """Append one line and flush it."""
        self.world.lead(lambda: self._append(self.path(name), line))

    def _append(self, path: Path, line: str) -> None:
        with told(path):
            new = not path.exists()
            self.disk.append(path, line.encode() + b"\n")
            if new:
                self.disk.sync(path.parent)

    def truncate(self, name: str, size: int) -> None:
        """Cut a file to ``size`` bytes."""
        self.world.lead(lambda: self._truncate(self.path(name), size))

    def _truncate(self, path: Path, size: int) -> None:
        with told(path):
            self.disk.truncate(path, size)

    def remove(self, name: str) -> None:
        """Remove a file or folder; a folder is gone at once, never in part."""
        self.world.lead(lambda: self._remove(self.path(name)))

    def _remove(self, path: Path) -> None:
        with told(path):
            if path.is_dir() and not path.is_symlink():
                self._put_aside(path)
            else:
                self.disk.remove(path)

    def sweep(self) -> list[str]:
        """Remove what an interrupted write left under a temporary name; return the files it was."""
        return self.world.lead(self._sweep)

    def _sweep(self) -> list[str]:
        left = sorted(p for p in self.root.rglob(TEMPORARY + "*"))
        files = [
            p
            for path in left
            for p in (path, *path.rglob("*"))
            if p.is_symlink() or not p.is_dir()
        ]
        for path in left:
            with told(path):
                self._clear(path)
        return [p.relative_to(self.root).as_posix() for p in files]


@functools.cache
def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _as_readable_as_others(path: Path) -> None:
    """Give a file the mode that any other new file has: safetensors makes its own for the owner alone."""
    if not path.is_symlink():
        path.chmod(0o666 & ~_umask())


def make_folder(path: Path, disk: Disk) -> None:
    """Make a folder and what is above it, down to the device."""
    if path.is_dir():
        return
    make_folder(path.parent, disk)
    disk.make_folder(path)
    disk.sync(path.parent)


def put_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a path, plainly: for use inside ``produce``."""
    path.write_bytes(text.encode())


def put_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write safetensors to a path, plainly: for use inside ``produce``."""
    ready = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    seen: set[int] = set()
    for name, tensor in ready.items():
        where = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        ready[name] = tensor if whole and where not in seen else tensor.clone()
        seen.add(where)
    save_file(ready, path, dict(metadata or {}))


def json_text(value: Any) -> str:
    """Return JSON, indented, keys in the order given. What is not finite becomes ``"nan"``, ``"inf"``
    or ``"-inf"``: JSON has no word for it, and ``float()`` reads these back.
    """
    return (
        json.dumps(finite(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    )


def file_digest(path: Path) -> str:
    """Return a file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """Return the sha256 that a file with this text has."""
    return hashlib.sha256(text.encode()).hexdigest()


def folder_digests(root: Path, folder: Path) -> dict[str, str]:
    """Return path (relative to ``root``) → sha256 of every file below ``folder``."""
    return {
        p.relative_to(root).as_posix(): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
