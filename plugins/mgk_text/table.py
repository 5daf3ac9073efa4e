"""Raw rows of one source, with what could not be read and what is worth a note."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from mgk_core.contract.errors import Problem


@frozen
class Raw:
    """One row as its file has it. line: 1-based; for parquet, Arrow and hub data the row number."""

    file: str
    line: int
    values: Mapping[str, Any]


@frozen
class Format:
    """How to read files, as far as a user has set it. header: the header's line; 0: there is none."""

    encoding: str = ""
    delimiter: str = ""
    header: int | None = None
    txt_unit: str = "paragraph"
    known: frozenset[str] = frozenset()
    """Column names of all layouts, in lower case: what a header line is recognised by."""


@define
class Table:
    """The rows of one source. notes: what was guessed about the file."""

    name: str
    rows: list[Raw] = field(factory=list)
    problems: list[Problem] = field(factory=list)
    notes: list[str] = field(factory=list)

    def add(self, line: int, values: Mapping[str, Any]) -> None:
        """Append a row."""
        self.rows.append(Raw(self.name, line, values))

    def bad(self, line: int | None, message: str, where: str = "") -> None:
        """Append a problem."""
        self.problems.append(Problem(where, message, self.name, line))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that the first hundred rows have, in their order."""
        names = dict[str, None]()
        for raw in self.rows[:100]:
            names.update(dict.fromkeys(raw.values))
        return tuple(names)
