"""Where rows come from: files, folders, packages, saved ``datasets``, or the hub."""

from __future__ import annotations

import glob
import importlib.resources
import re
import unicodedata
from pathlib import Path
from urllib.parse import parse_qsl

from attrs import frozen

from mgk_core.contract.errors import EnvironmentFault, InputError, nearest

SUFFIXES = (
    ".txt", ".md", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow",
)  # fmt: skip
COMPRESSED = (".gz", ".zst")
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_HUB_KEYS = ("config", "split", "revision")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}
"""What people call the split that a setting reads."""


@frozen
class FileSource:
    """A file on disk. name: as the user wrote it, for messages."""

    name: str
    path: Path

    @property
    def compression(self) -> str:
        """``.gz``, ``.zst``, or empty."""
        last = self.path.suffix.lower()
        return last if last in COMPRESSED else ""

    @property
    def suffix(self) -> str:
        """The suffix that decides the format, without a compression's."""
        path = self.path.with_suffix("") if self.compression else self.path
        return path.suffix.lower()


@frozen
class SavedSource:
    """A directory that ``datasets`` wrote with ``save_to_disk``. split: which part of a dict."""

    name: str
    path: Path
    split: str = "train"


@frozen
class HubSource:
    """A data set on the hub, read through ``datasets``."""

    name: str
    repository: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


Source = FileSource | SavedSource | HubSource


def as_tuple(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the sources of a setting that may be one or several."""
    return (source,) if isinstance(source, str) else source


def find(text: str, split: str = "train") -> tuple[Source, ...]:
    """Return every source that a setting names: one, or the files of a folder or glob.

    :param split: ``train``, ``dev`` or ``test``: which part of a folder that has several
    :raises InputError: nothing is there, or nothing that can be read
    """
    if text.startswith("hub:"):
        return (_hub(text),)
    path = (
        _package_path(text) if text.startswith("package:") else Path(text).expanduser()
    )
    path = _on_disk(path)
    if path.is_file():
        return (_file(text, path),)
    if path.is_dir():
        return _folder(text, path, split)
    if glob.has_magic(text):
        return _glob(text)
    if _suffix(path) not in SUFFIXES and not path.exists():
        raise InputError(f"{text}: {_expected()}")
    raise InputError(
        f"{text}: no such file; give its path from {Path.cwd()}, or from /"
    )


def _file(name: str, path: Path) -> FileSource:
    suffix = _suffix(path)
    if suffix in _SPREADSHEETS:
        raise InputError(
            f"{name}: is a spreadsheet; save it as CSV UTF-8 and give that file"
        )
    if suffix not in SUFFIXES:
        raise InputError(f"{name}: {_expected()}")
    return FileSource(name, path)


def _expected() -> str:
    return (
        f"expected a file that ends in {', '.join(SUFFIXES)} (also with .gz or .zst),"
        " a folder of them, or hub:OWNER/NAME"
    )


def _suffix(path: Path) -> str:
    return FileSource("", path).suffix


def _folder(name: str, folder: Path, split: str) -> tuple[Source, ...]:
    """Return what a folder has: a saved data set, or all files in it that can be read."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return (SavedSource(name, folder, split),)
    found = [
        p for p in sorted(folder.rglob("*")) if p.is_file() and _suffix(p) in SUFFIXES
    ]
    readable = [
        p
        for p in found
        if not p.name.lower().startswith(("readme", ".", "dataset_info"))
    ]
    if not readable:
        raise InputError(f"{name}: this folder has no file to read; {_expected()}")
    chosen = _of_split(name, folder, readable, split)
    return tuple(FileSource(str(Path(name) / p.relative_to(folder)), p) for p in chosen)


def _of_split(name: str, folder: Path, paths: list[Path], split: str) -> list[Path]:
    """Keep the files of a split, if file or folder names show which split each is."""
    by_split = {p: _split_of(p.relative_to(folder)) for p in paths}
    if not any(by_split.values()):
        return paths
    chosen = [p for p, found in by_split.items() if found == split]
    if not chosen:
        names = ", ".join(sorted({s for s in by_split.values() if s}))
        raise InputError(
            f"{name}: no file of the {split} split; this folder has {names}"
        )
    return chosen


def _split_of(path: Path) -> str:
    """Return the split that a path such as ``data/test-00000-of-00001.parquet`` names."""
    words = re.split(r"[^a-z]+", str(path).lower())
    for split, names in SPLIT_NAMES.items():
        if any(name in words for name in names):
            return split
    return ""


def _glob(pattern: str) -> tuple[Source, ...]:
    """Return the files that match, by name, whichever Unicode form their names have."""
    forms = {unicodedata.normalize(form, pattern) for form in ("NFC", "NFD")}
    found = set[str]()
    for form in forms:
        found.update(glob.glob(str(Path(form).expanduser()), recursive=True))  # noqa: PTH207
    files = [Path(p) for p in sorted(found) if Path(p).is_file()]
    if not files:
        raise InputError(
            f"{pattern}: no such file, and as a pattern it matches no file; give its path from"
            f" {Path.cwd()}, or from /"
        )
    return tuple(_file(str(p), p) for p in files)


def _on_disk(path: Path) -> Path:
    """Return a path as the disk spells it: macOS and zip files may decompose Hangul (NFD)."""
    if path.exists() or str(path).isascii():
        return path
    found = Path(path.anchor) if path.anchor else Path()
    for part in path.parts[1:] if path.anchor else path.parts:
        step = found / part
        if not step.exists() and found.is_dir():
            wanted = unicodedata.normalize("NFC", part)
            same = (
                p
                for p in found.iterdir()
                if unicodedata.normalize("NFC", p.name) == wanted
            )
            step = next(same, step)
        found = step
    return found


def _hub(text: str) -> HubSource:
    repository, _, query = text.removeprefix("hub:").partition("?")
    options = dict(parse_qsl(query))
    for key in options:
        if key not in _HUB_KEYS:
            raise InputError(f"{text}: unknown key {key!r}{nearest(key, _HUB_KEYS)}")
    if not repository:
        raise InputError(f"{text}: expected hub:OWNER/NAME?config=NAME&split=NAME")
    return HubSource(
        text,
        repository,
        options.get("config"),
        options.get("split", "train"),
        options.get("revision"),
    )


def _package_path(text: str) -> Path:
    package, _, inside = text.removeprefix("package:").partition("/")
    try:
        return Path(str(importlib.resources.files(package).joinpath(inside)))
    except (ModuleNotFoundError, ValueError) as error:
        raise EnvironmentFault(
            f"{text}: package {package!r} is not installed ({error})"
        ) from None
