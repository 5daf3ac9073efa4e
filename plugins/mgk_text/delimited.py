"""CSV and TSV as people save them: any delimiter, title rows, empty columns, cells of any length."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from attrs import define, field, frozen

from mgk_text.table import Format, Table

_DELIMITERS = (",", "\t", ";", "|")
_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
_SAMPLE = 20  # rows that a guess is made from
_LONGEST_CELL = (
    2**31 - 1
)  # csv's own limit is 131,072 characters; clinical notes are longer
_LETTERS = "ABCDEFGHIJ"


@frozen
class Row:
    """One row that is not empty. line: of its first cell."""

    line: int
    cells: list[str]


@frozen
class Shape:
    """How a file is laid out. header: its line, 0 for none. names: columns where there is none."""

    delimiter: str
    header: int
    names: tuple[str, ...] = ()
    quoted: bool = True


def read_delimited(text: str, table: Table, default: str, how: Format) -> None:
    """Read rows into ``table``. default: the delimiter that the file's suffix stands for."""
    csv.field_size_limit(_LONGEST_CELL)
    shape = _shape(text, default, how)
    if shape is None:
        return
    if shape.delimiter == "\t" and _has_loose_quotes(text):
        shape = Shape("\t", shape.header, shape.names, quoted=False)
    _note(table, shape, default, how)
    _Columns(table, shape).read(_rows(text, shape, table))


def _shape(text: str, default: str, how: Format) -> Shape | None:
    """Find delimiter and header: the line with the most known column names, or the first one."""
    candidates = [how.delimiter] if how.delimiter else [default, *_DELIMITERS]
    # By one delimiter a line may be all empty cells where by another it holds text.
    sampled = {d: _sample(text, d) for d in dict.fromkeys(candidates)}
    samples = {d: rows for d, rows in sampled.items() if rows}
    if not samples:
        return None
    delimiter, header = _by_known_names(samples, how.known)
    if header is None:
        delimiter = _by_width(samples)
    rows = samples[delimiter]
    if how.header is not None:
        names = tuple(str(i + 1) for i in range(len(rows[0].cells)))
        return Shape(delimiter, how.header, () if how.header else names)
    if header is None and (names := _exam_columns(rows)):
        return Shape(delimiter, 0, names)
    return Shape(delimiter, header or rows[0].line)


def _by_known_names(
    samples: dict[str, list[Row]], known: frozenset[str]
) -> tuple[str, int | None]:
    """Return the delimiter and line of the row that is most likely the header; None: no such row."""
    best = 0
    place: tuple[str, int | None] = (next(iter(samples)), None)
    for delimiter, rows in samples.items():
        for row in rows:
            cells = [c for c in map(clean_name, row.cells) if c]
            hits = sum(c.lower() in known for c in cells)
            # A data row may contain one such word: "A" as an answer, "text" as a text.
            if hits > best and 2 * hits >= len(cells):
                best, place = hits, (delimiter, row.line)
    return place


def _by_width(samples: dict[str, list[Row]]) -> str:
    """Return the first delimiter that parts every row into the same number of columns."""
    for delimiter, rows in samples.items():
        widths = {len(row.cells) for row in rows}
        if len(widths) == 1 and widths != {1}:
            return delimiter
    return next(iter(samples))


def _exam_columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the columns of a file without a header as MMLU has it: question, options, a letter."""
    widths = {len(row.cells) for row in rows}
    options = _LETTERS[: max(widths) - 2]
    if len(widths) > 1 or len(options) < 2:
        return ()
    if all(row.cells[-1].strip() in set(options) for row in rows):
        return ("question", *options, "answer")
    return ()


def _note(table: Table, shape: Shape, default: str, how: Format) -> None:
    if shape.delimiter != default and not how.delimiter:
        table.notes.append(
            f"columns separated by {_NAMES.get(shape.delimiter, shape.delimiter)}"
        )
    if how.header is not None:
        return
    if shape.header == 0:
        table.notes.append("no header line")
    elif shape.header > 1:
        table.notes.append(f"header in line {shape.header}, what is above it left out")


def _sample(text: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = list[Row]()
    for cells in islice(reader, _SAMPLE):
        if any(c.strip() for c in cells):
            rows.append(Row(reader.line_num - _breaks(cells), cells))
    return rows


def _breaks(cells: Sequence[str]) -> int:
    return sum(c.count("\n") or c.count("\r") for c in cells)


def _rows(text: str, shape: Shape, table: Table) -> Iterator[Row]:
    """Yield the rows from the header on that are not empty."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if shape.quoted else csv.QUOTE_NONE
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=shape.delimiter, strict=True, quoting=quoting)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if line >= shape.header:
                message = (
                    f"cannot be read: {error}; check for a quote that is never closed"
                )
                table.bad(line, message)
            continue
        if line >= shape.header and any(c.strip() for c in cells):
            yield Row(line, cells)


def _has_loose_quotes(text: str) -> bool:
    """Whether a TSV uses quotes as plain characters: strict CSV rules would refuse or strip them."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error:
        return True
    return False


@define
class _Columns:
    """Gives each row's cells their names."""

    table: Table
    shape: Shape
    names: tuple[str, ...] = ()
    unnamed: Counter[int] = field(factory=Counter)

    def read(self, rows: Iterator[Row]) -> None:
        """Take the names from the header and add every other row to the table."""
        self.names = self.shape.names
        for row in rows:
            if self.names:
                self._add(row)
            else:
                self._take_names(row)
        for column, count in sorted(self.unnamed.items()):
            self.table.notes.append(
                f"column {column + 1} has no name; its {count:,} values unused"
            )

    def _take_names(self, row: Row) -> None:
        self.names = tuple(clean_name(c) for c in row.cells)
        named = [n for n in self.names if n]
        if len(set(named)) < len(named):
            self.table.bad(
                row.line, "two columns of one name in the header; give each its own"
            )

    def _add(self, row: Row) -> None:
        extra = row.cells[len(self.names) :]
        if len(row.cells) < len(self.names) or any(c.strip() for c in extra):
            expected, found = len(self.names), len(row.cells)
            message = f"expected {expected} columns, found {found}"
            self.table.bad(
                row.line, f"{message}; quote cells that contain the separator"
            )
            return
        values = dict[str, str]()
        for number, (name, cell) in enumerate(zip(self.names, row.cells, strict=False)):
            if name:
                values[name] = cell
            elif cell.strip():
                self.unnamed[number] += 1
        self.table.add(row.line, values)


def clean_name(name: str) -> str:
    """Return a column's name as layouts and users write it: composed (NFC), without blanks around."""
    return unicodedata.normalize("NFC", name).strip()
