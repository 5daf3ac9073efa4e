"""Where rows come from: a file, a file inside an installed package, or a data set on the hub."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from urllib.parse import parse_qsl

from attrs import frozen

from mgk_core.contract.errors import EnvironmentFault, InputError, nearest

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
_HUB_KEYS = ("config", "split", "revision")


@frozen
class FileSource:
    """A file on disk. name: as the user wrote it, for messages."""

    name: str
    path: Path

    @property
    def suffix(self) -> str:
        """The suffix, which says how to read it."""
        return self.path.suffix.lower()


@frozen
class HubSource:
    """A data set on the hub, read through ``datasets``."""

    name: str
    repository: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


def as_tuple(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the sources of a setting that may be one or several."""
    return (source,) if isinstance(source, str) else source


def parse(text: str) -> FileSource | HubSource:
    """Return the source that a setting names; `InputError` says what is wrong with it."""
    if text.startswith("hub:"):
        return _hub(text)
    path = _package_path(text) if text.startswith("package:") else Path(text).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{text}: expected a file that ends in {', '.join(SUFFIXES)}, or hub:OWNER/NAME"
        )
    if not path.is_file():
        raise InputError(f"{text}: no such file here; give its path from {Path.cwd()}, or from /")
    return FileSource(text, path)


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
        raise EnvironmentFault(f"{text}: package {package!r} is not installed ({error})") from None
