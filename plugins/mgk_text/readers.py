"""From a source to raw rows: one function a format, every problem with its file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import field, frozen

from mgk_core.contract.errors import EnvironmentFault, Problem
from mgk_text.sources import FileSource, HubSource


@frozen
class Raw:
    """One row as its file has it. line: 1-based; for parquet and hub data the row's number."""

    file: str
    line: int
    values: dict[str, Any]


@frozen
class Table:
    """The rows of one source, and what could not be read in it."""

    name: str
    rows: list[Raw] = field(factory=list)
    problems: list[Problem] = field(factory=list)

    def add(self, line: int, values: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(Raw(self.name, line, values))

    def bad(self, line: int | None, message: str, where: str = "") -> None:
        """Append a problem."""
        self.problems.append(Problem(where, message, self.name, line))


def read(
    source: FileSource | HubSource,
    *,
    header: Sequence[str] | None = None,
    txt_unit: str = "paragraph",
) -> Table:
    """Read every row of a source.

    :param header: the columns of a .csv or .tsv file that has no header line
    :param txt_unit: what one text of a .txt file is: ``paragraph``, ``line`` or ``file``
    """
    table = Table(source.name)
    if isinstance(source, HubSource):
        _read_hub(source, table)
    elif source.suffix == ".parquet":
        _read_parquet(source, table)
    elif source.suffix == ".jsonl":
        _read_jsonl(_text(source, table), table)
    elif source.suffix == ".txt":
        _read_txt(_text(source, table), table, txt_unit)
    else:
        delimiter = "\t" if source.suffix == ".tsv" else ","
        _read_delimited(_text(source, table), table, delimiter, header)
    if not table.rows and not table.problems:
        table.bad(None, "holds no rows; give a file with at least one")
    return table


def _text(source: FileSource, table: Table) -> str:
    """Decode as UTF-8; lines that are not are reported and left out."""
    try:
        data = source.path.read_bytes()
    except OSError as error:
        table.bad(None, f"cannot be read: {error.strerror}; give a file that you may read")
        return ""
    try:
        return _without_nulls(data.decode("utf-8-sig"), table)
    except UnicodeDecodeError:
        lines = []
        for number, line in enumerate(data.split(b"\n"), 1):
            try:
                lines.append(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                table.bad(
                    number, f"is not UTF-8 (byte {error.start} of the line); save the file as UTF-8"
                )
                lines.append("")
        return "\n".join(lines)


def _without_nulls(text: str, table: Table) -> str:
    """Report lines with null bytes, which no text has, and leave them out."""
    if "\0" not in text:
        return text
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            table.bad(number, "holds a null byte; expected a text file, saved as UTF-8")
            lines[number - 1] = ""
    return "\n".join(lines)


def _read_jsonl(text: str, table: Table) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # not JSON, too many digits, nested without end
            table.bad(number, f"is not JSON: {error}; expected one JSON object a line")
            continue
        if isinstance(values, dict):
            table.add(number, values)
        else:
            table.bad(number, f"expected a JSON object, got {type(values).__name__}")


def _read_txt(text: str, table: Table, unit: str) -> None:
    if unit == "file":
        if text.strip():
            table.add(1, {"text": text.strip()})
        return
    start, lines = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            start = start if lines else number
            lines.append(line.strip())
            if unit == "paragraph":
                continue
        if lines:
            table.add(start, {"text": "\n".join(lines)})
            lines = []


def _read_delimited(text: str, table: Table, delimiter: str, header: Sequence[str] | None) -> None:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = list(header) if header is not None else None
    for line, cells in _cells(reader, table):
        if names is None:
            names = [c.strip() for c in cells]
            if len(set(names)) < len(names):
                table.bad(line, "two columns of one name in the header; give each its own")
        elif len(cells) != len(names):
            table.bad(
                line,
                f"expected {len(names)} columns, found {len(cells)}; quote cells that hold the separator",
            )
        else:
            table.add(line, dict(zip(names, cells, strict=True)))


def _cells(reader: Any, table: Table) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of each row that is not empty."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            table.bad(line, f"cannot be read: {error}; look for a quote that is never closed")
            continue
        if any(c.strip() for c in cells):
            yield line, cells


def _read_parquet(source: FileSource, table: Table) -> None:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise EnvironmentFault(
            f"{source.name}: parquet files need pyarrow: pip install 'mgk[data]'"
        ) from None
    try:
        rows = parquet.read_table(source.path).to_pylist()
    except (OSError, ArrowException) as error:
        table.bad(None, f"cannot be read as parquet: {error}; write the file again")
        return
    for number, values in enumerate(rows, 1):
        table.add(number, values)


def _read_hub(source: HubSource, table: Table) -> None:
    try:
        import datasets
    except ImportError:
        raise EnvironmentFault(
            f"{source.name}: data on the hub needs datasets: pip install 'mgk[data]'"
        ) from None
    try:
        rows = datasets.load_dataset(
            source.repository, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EnvironmentFault(
            f"{source.name}: {reason}; check name, config and split, log in with 'hf auth login' where it is gated,"
            " or download it and name the file"
        ) from None
    for number, values in enumerate(rows, 1):
        table.add(number, values)
