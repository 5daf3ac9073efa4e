"""Errors that carry their data and format their own message.

One base class. Each subclass fixes the exit code of the command line: 1 a gate refused, 2 bad
input, 3 environment, 130 interrupted and resumable.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from attrs import frozen


class MgkError(Exception):
    """Anything that a user can fix. ``str()`` is the message, without a prefix."""

    exit_code: ClassVar[int] = 2


class InputError(MgkError):
    """Something the user gave is wrong: an argument, a file, a name."""


class DataError(InputError):
    """Rows of a data file are wrong; carries all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(_lines(self.problems))


class ConfigError(InputError):
    """A configuration is wrong; carries every problem found, not only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(_lines(self.problems))


class EnvironmentFault(MgkError):
    """The machine is in the way: no device, no disk, no memory, a library missing."""

    exit_code = 3


class PluginError(EnvironmentFault):
    """A plugin is broken, incompatible, or raised inside a hook."""

    def __init__(self, plugin: str, message: str, hook: str | None = None) -> None:
        self.plugin, self.hook = plugin, hook
        super().__init__(message)


class StoreError(EnvironmentFault):
    """A file could not be written or read back whole."""


class DigestError(InputError):
    """A file does not match its digest."""

    def __init__(
        self,
        path: Path,
        expected: str,
        found: str,
        hint: str = "restore the file from a copy",
    ) -> None:
        self.path, self.expected, self.found = path, expected, found
        super().__init__(
            f"{path}: content does not match its digest (expected {_cut(expected)}, found {_cut(found)});"
            f" {hint}, or rebuild the run from an earlier phase"
        )


class MergeError(MgkError):
    """A merge was refused; the model is bit-identical to what it was."""


class GateRefused(MgkError):
    """A gate refused a transition and no recovery was left; the phase was rolled back."""

    exit_code = 1


class Interrupted(MgkError):
    """The user or the system asked the run to stop; it can be resumed."""

    exit_code = 130


@frozen
class Problem:
    """One thing that is wrong, and where.

    where: dotted key, or a column; file and line where they are known.
    """

    where: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = [
            p for p in (self.file, None if self.line is None else str(self.line)) if p
        ]
        head = ":".join(place)
        parts = [p for p in (head, self.where, self.message) if p]
        return ": ".join(parts)


LISTED = 20
"""Names that an error lists where none is near what was given."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"``, or what is known where nothing is near."""
    options = sorted(known)
    if (meant := closest(name, options)) is not None:
        return f"; did you mean '{meant}'?"
    if not options:
        return ""
    more = f" and {len(options) - LISTED} more" if len(options) > LISTED else ""
    return f"; known: {', '.join(options[:LISTED])}{more}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is meant where one is misspelt; None where nothing is near."""
    return next(
        iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None
    )


def _cut(digest: str) -> str:
    return f"{digest[:16]}…" if len(digest) >= 32 else digest


def _lines(problems: tuple[Problem, ...]) -> str:
    return "\n".join(str(p) for p in problems)


__all__ = [
    "ConfigError",
    "DataError",
    "DigestError",
    "EnvironmentFault",
    "GateRefused",
    "InputError",
    "Interrupted",
    "MergeError",
    "MgkError",
    "PluginError",
    "Problem",
    "StoreError",
    "closest",
    "nearest",
]
