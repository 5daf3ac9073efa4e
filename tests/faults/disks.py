"""Disks that kill, fill up, forbid or forget; what the runs of these tests write through."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from mgk_core.record.disk import Disk

OPERATIONS = (
    "produce",
    "append",
    "sync",
    "rename",
    "remove",
    "make_folder",
    "truncate",
)


class Counting(Disk):
    """Calls ``before`` and ``after`` around every operation with its number, counted from 1."""

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []

    def before(self, name: str, paths: tuple[Path, ...]) -> None:
        """Do something before an operation."""

    def after(self, name: str, paths: tuple[Path, ...]) -> None:
        """Do something after an operation."""

    def _around(self, name: str, operation: Callable[..., None], *args: object) -> None:
        self.count += 1
        paths = tuple(a for a in args if isinstance(a, Path))
        self.names.append(f"{name} {paths[-1].name}")
        self.before(name, paths)
        operation(*args)
        self.after(name, paths)


def _counted(name: str) -> Callable[..., None]:
    def method(self: Counting, *args: object) -> None:
        self._around(name, getattr(super(Counting, self), name), *args)

    return method


for _name in OPERATIONS:
    setattr(Counting, _name, _counted(_name))


class Killing(Counting):
    """Kills its own process at operation ``at``: before it, after it, or in the middle of what it writes."""

    def __init__(self, at: int, when: str) -> None:
        super().__init__()
        self.at, self.when = at, when

    def before(self, name: str, paths: tuple[Path, ...]) -> None:
        """Die before the operation."""
        if self.count == self.at and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, name: str, paths: tuple[Path, ...]) -> None:
        """Die after the operation, or leave half of what it wrote."""
        if self.count != self.at:
            return
        if self.when == "half" and name in {"produce", "append"}:
            for path in _files(paths[0]):
                size = path.stat().st_size
                cut = 1 + size // 2 if name == "produce" else size - 7
                os.truncate(path, min(size, cut))
        os.kill(os.getpid(), signal.SIGKILL)


def _files(path: Path) -> Iterator[Path]:
    yield from (
        (p for p in (path, *path.rglob("*")) if p.is_file()) if path.exists() else ()
    )


class Full(Counting):
    """Has room for ``room`` bytes, then fails as a full disk does, in the middle of a file."""

    def __init__(self, room: int, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self.room, self.error = room, error

    def before(self, name: str, paths: tuple[Path, ...]) -> None:
        """Remember how large an appended file was."""
        self._size = (
            paths[0].stat().st_size if name == "append" and paths[0].exists() else 0
        )

    def after(self, name: str, paths: tuple[Path, ...]) -> None:
        """Take the written bytes from what is left; cut what did not fit."""
        if name not in {"produce", "append"}:
            return
        for path in _files(paths[0]):
            written = path.stat().st_size - (self._size if name == "append" else 0)
            self.room -= written
            if self.room < 0:
                # What append cuts off again itself when the system fails it.
                os.truncate(
                    path,
                    self._size if name == "append" else max(0, written + self.room),
                )
                raise OSError(self.error, os.strerror(self.error), str(path))


class Forbidding(Counting):
    """Fails one kind of operation from its ``at``-th on: a read-only disk, a lost right, a broken device."""

    def __init__(self, names: tuple[str, ...], error: int, at: int = 1) -> None:
        super().__init__()
        self.refused, self.error, self.at, self._seen = names, error, at, 0

    def before(self, name: str, paths: tuple[Path, ...]) -> None:
        """Fail."""
        self._seen += name in self.refused
        if name in self.refused and self._seen >= self.at:
            raise OSError(self.error, os.strerror(self.error), str(paths[-1]))


class Forgetting(Counting):
    """Knows what would be left after a power failure: only what was synced.

    A file's content survives as it was at its last sync (never synced: empty); a folder's entries as
    they were at its last sync. ``keep``: share of the changes since then that survive all the same, drawn
    by ``seed``, since a disk may write in any order. After each operation listed in ``at`` the state that
    would be left is written below ``out``.
    """

    def __init__(
        self, root: Path, out: Path, at: set[int], *, keep: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.root, self.out, self.at, self.keep = root, out, at, keep
        self.random = random.Random(seed)
        self.contents: dict[int, bytes] = {}
        self.entries: dict[int, dict[str, int]] = {}
        self.folders: set[int] = set()
        self.graves = (
            out / "graves"
        )  # hard links, so that no inode number is used twice
        self.graves.mkdir(parents=True)

    def before(self, name: str, paths: tuple[Path, ...]) -> None:
        """Keep the inodes of what is removed or replaced from being used again."""
        if name in {"remove", "rename"}:
            for path in _files(paths[-1]):
                grave = self.graves / str(path.stat().st_ino)
                if not grave.exists():
                    os.link(path, grave)

    def after(self, name: str, paths: tuple[Path, ...]) -> None:
        """Note what this operation made durable, and leave the state behind if asked."""
        path = paths[0]
        if name == "produce":
            self._begin_anew(path)
        if name in {"append", "truncate"}:
            self.contents[path.stat().st_ino] = path.read_bytes()
        elif name == "sync" and path.is_dir():
            self.entries[path.stat().st_ino] = {
                p.name: p.stat().st_ino for p in path.iterdir()
            }
            self.folders |= {p.stat().st_ino for p in path.iterdir() if p.is_dir()}
        elif name == "sync":
            self.contents[path.stat().st_ino] = path.read_bytes()
        elif name == "make_folder":
            self.entries[
                path.stat().st_ino
            ] = {}  # a new folder may have an old one's number
        if self.count in self.at:
            target = self.out / f"after-{self.count}"
            self._leave(self.root, self.root.stat().st_ino, target)

    def _begin_anew(self, path: Path) -> None:
        """Forget what is known under the numbers of new files and folders."""
        for inner in (path, *path.rglob("*")):
            number = inner.stat().st_ino
            self.contents.pop(number, None)
            self.folders.discard(number)
            if inner.is_dir():
                self.entries[number] = {}
            else:
                self.entries.pop(number, None)

    def _leave(self, real: Path, inode: int, target: Path) -> None:
        """Write one folder as it would be found: durable entries, and by chance some that are not."""
        target.mkdir(parents=True)
        durable = dict(self.entries.get(inode, {}))
        present = (
            {p.name: p for p in real.iterdir()}
            if real.is_dir() and real.stat().st_ino == inode
            else {}
        )
        for name, path in present.items():
            if (
                durable.get(name) != path.stat().st_ino
                and self.random.random() < self.keep
            ):
                durable[name] = path.stat().st_ino
        for name in list(durable):
            if name not in present and self.random.random() < self.keep:
                del durable[name]
        for name, number in durable.items():
            path = present.get(name, real / name)
            if number in self.entries or number in self.folders:
                self._leave(path, number, target / name)
            else:
                (target / name).write_bytes(self._content(path, number))

    def _content(self, path: Path, number: int) -> bytes:
        synced = self.contents.get(number, b"")
        if (
            path.is_file()
            and path.stat().st_ino == number
            and self.random.random() < self.keep
        ):
            return path.read_bytes()
        return synced

    def close(self) -> None:
        """Remove what was kept for the count alone."""
        shutil.rmtree(self.graves)


class Negligent(Forgetting):
    """Leaves every sync out, as a store would that did not know of them."""

    def sync(self, path: Path) -> None:
        """Do nothing."""
        self.count += 1
        if self.count in self.at:
            self._leave(
                self.root, self.root.stat().st_ino, self.out / f"after-{self.count}"
            )
