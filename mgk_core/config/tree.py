"""Configuration as a tree of tables, and where each value in it came from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from mgk_core.contract.errors import ConfigError, Problem

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 40
_TOML = "each line must be [table] or key = value, strings in quotes"
_DEEP = f"tables or arrays are nested too deeply; a configuration needs at most {MAX_DEPTH} levels"


@frozen
class Source:
    """Where a value came from: a pipeline, a file with its line, ``--set``, a flag."""

    what: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.file is None:
            return self.what
        return self.file if self.line is None else f"{self.file}:{self.line}"


@frozen
class Tree:
    """Nested tables and, per dotted path, the source of each value. tables: what was a table, or true, at any time."""

    values: dict[str, Any] = field(factory=dict)
    sources: dict[tuple[str, ...], Source] = field(factory=dict)
    tables: set[tuple[str, ...]] = field(factory=set)

    def overlay(
        self, table: Mapping[str, Any], source: Source, text: str | None = None
    ) -> None:
        """Merge ``table`` in: tables deeply, values by replacing. Errors are impossible here.

        text: the file's content, to look lines up in.
        """
        self._merge(self.values, table, (), source, text)

    def _merge(
        self,
        into: dict[str, Any],
        table: Mapping[str, Any],
        path: tuple[str, ...],
        source: Source,
        text: str | None,
    ) -> None:
        if "type" in table and into.get("type", table["type"]) != table["type"]:
            into.clear()  # keys of another type mean nothing to this one
        for key, value in table.items():
            here = (*path, key)
            self.sources[here] = _located(source, text, here)
            if isinstance(value, Mapping) or value is True:
                self.tables.add(here)
            if isinstance(value, Mapping):
                below = into.get(key)
                if not isinstance(below, dict):
                    below = into[key] = {}
                self._merge(below, value, here, source, text)
            else:
                into[key] = list(value) if isinstance(value, tuple) else value

    def source(self, path: tuple[str, ...]) -> Source | None:
        """Return the source of a path, or of the nearest table around it."""
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path[:-1]
        return self.sources.get(())

    def copy_sources(self, start: tuple[str, ...], to: tuple[str, ...]) -> None:
        """Let what was merged from ``start`` be known under ``to`` where nothing else is."""
        for path, source in list(self.sources.items()):
            if path[: len(start)] == start:
                self.sources.setdefault((*to, *path[len(start) :]), source)

    def problem(self, path: tuple[str, ...], message: str) -> Problem:
        """Make a `Problem` at a path, with file and line where they are known."""
        source = self.source(path)
        where = ".".join(_quoted(p) for p in path)
        if source is None or source.file is None:
            prefix = (
                f"{source.what}: " if source and source.what.startswith("--") else ""
            )
            return Problem(prefix + where, message)
        return Problem(where, message, source.file, source.line)


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Read a TOML file; a `ConfigError` explains what is wrong with it and where."""
    name = str(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ConfigError(
                [Problem("", "expected a TOML file, got something else", name)]
            )
        if size > MAX_BYTES:
            raise ConfigError(
                [
                    Problem(
                        "",
                        f"file has {size:,} bytes; a configuration has at most {MAX_BYTES:,}",
                        name,
                    )
                ]
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            [
                Problem(
                    "",
                    f"cannot be read: {error.strerror or error}; give a file that is there",
                    name,
                )
            ]
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [
                Problem(
                    "", f"not UTF-8 at byte {error.start}; save the file as UTF-8", name
                )
            ]
        ) from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else None
        raise ConfigError(
            [Problem("", f"not valid TOML: {error}; {_TOML}", name, line)]
        ) from None
    except ValueError as error:  # a number of more digits than Python reads
        raise ConfigError(
            [Problem("", f"not valid TOML: {error}; {_TOML}", name)]
        ) from None
    except RecursionError:
        raise ConfigError([Problem("", _DEEP, name)]) from None
    if too_deep(table):
        raise ConfigError([Problem("", _DEEP, name)])
    return table, text


def too_deep(table: Any) -> bool:
    """Whether tables and arrays are nested deeper than any configuration needs."""
    level: list[Any] = [table]
    for _ in range(MAX_DEPTH):
        below = [
            v.values() if isinstance(v, dict) else v
            for v in level
            if isinstance(v, (dict, list))
        ]
        if not below:
            return False
        level = [inner for values in below for inner in values]
    return True


def parse_set(text: str) -> dict[str, Any]:
    """Parse one ``KEY=VALUE`` of ``--set``; a value that is not valid TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            [
                Problem(
                    f"--set {text}",
                    "expected KEY=VALUE, such as phases.mcq.optimizer.lr=1e-4",
                )
            ]
        )
    if "\n" in text or "\r" in text:
        raise ConfigError(
            [Problem(f"--set {key}", "a value may not contain a line break")]
        )
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    for candidate in (value, quoted):
        try:
            table = tomllib.loads(f"{key} = {candidate}")
        except (
            ValueError,
            RecursionError,
        ):  # not TOML, too many digits, nested without end
            continue
        if not too_deep(table):
            return table
    raise ConfigError(
        [
            Problem(
                f"--set {text}",
                'the key is not valid TOML; quote parts that hold other signs: a."b.c"=1',
            )
        ]
    )


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'


def _located(source: Source, text: str | None, path: tuple[str, ...]) -> Source:
    if text is None:
        return source
    return Source(source.what, source.file, line_of(text, path))


_HEADER = re.compile(r"^\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(
    r"^\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*="
)


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """Return the 1-based line on which a path is set, or its nearest table is opened.

    tomllib knows no positions, and the parsers that do are heavy or lossy: so headers and keys
    are found by their form, which is enough to point a reader at the place.
    """
    best: tuple[int, int] | None = None
    header: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if opened := _HEADER.match(line):
            header = _parts(opened[1])
            found = header
        elif key := _KEY.match(line):
            found = (*header, *_parts(key[1]))
        else:
            continue
        if path[: len(found)] == found and (best is None or len(found) > best[0]):
            best = (len(found), number)
    return best[1] if best else None


def _parts(dotted: str) -> tuple[str, ...]:
    found = re.findall(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)", dotted)
    return tuple(a or b or c for a, b, c in found)
