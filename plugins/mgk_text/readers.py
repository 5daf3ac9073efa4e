"""From a source to raw rows: one function per format; every problem has its file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgk_core.contract.errors import EnvironmentFault
from mgk_text.decode import text_of
from mgk_text.delimited import clean_name, read_delimited
from mgk_text.sources import SPLIT_NAMES, FileSource, HubSource, SavedSource, Source
from mgk_text.table import Format, Table

_POINTER = b"version https://git-lfs"


def read(source: Source, how: Format | None = None) -> Table:
    """Read every row of a source."""
    how = how or Format()
    table = Table(source.name)
    if isinstance(source, HubSource):
        _read_hub(source, table)
    elif isinstance(source, SavedSource):
        _read_saved(source, table)
    else:
        _read_file(source, table, how)
    if not table.rows and not table.problems:
        table.bad(None, "has no rows; give a file with at least one")
    return table


def _read_file(source: FileSource, table: Table, how: Format) -> None:
    with source.path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            table.bad(1, "is a pointer of Git LFS, not the data; run git lfs pull")
            return
    if source.suffix in {".parquet", ".arrow"}:
        _read_arrow(source, table)
        return
    text = text_of(source, table, how.encoding)
    if "\n" not in text:
        text = text.replace("\r", "\n")  # as Macs once ended lines
    if source.suffix in {".jsonl", ".ndjson"}:
        _read_lines(text, table)
    elif source.suffix == ".json":
        _read_json(text, table)
    elif source.suffix == ".txt" and _are_objects(text):
        table.notes.append("its content is JSON lines")
        _read_lines(text, table)
    elif source.suffix in {".txt", ".md"}:
        _read_text(text, table, how.txt_unit)
    else:
        read_delimited(text, table, "\t" if source.suffix == ".tsv" else ",", how)


def _read_lines(text: str, table: Table) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            table.bad(
                number, f"is not JSON: {error}; expected one JSON object per line"
            )
            continue
        _add_object(table, number, values)


def _add_object(table: Table, line: int, values: Any) -> None:
    if not isinstance(values, dict):
        table.bad(line, f"expected a JSON object, got {type(values).__name__}")
    elif all(key.isascii() for key in values):
        table.add(line, values)
    else:
        table.add(line, {clean_name(key): value for key, value in values.items()})


def _read_json(text: str, table: Table) -> None:
    """Read an array of objects, an object that contains one, objects by id, or JSON lines."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "[":
        _read_array(text, start + 1, table)
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = text.strip().split("\n")
        if len(lines) > 1 and _is_object(lines[0]):
            _read_lines(text, table)
        elif text.strip():
            message = f"is not JSON: {error}; expected an array of objects, or one object per line"
            table.bad(getattr(error, "lineno", None), message)
        return
    _read_object(whole, table)


def _are_objects(text: str) -> bool:
    """Whether the first lines of a text are JSON objects, one each."""
    if not text.lstrip().startswith("{"):
        return False
    lines = [line for line in text[:1_000_000].split("\n") if line.strip()]
    return len(lines) > 1 and all(map(_is_object, lines[:2]))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_array(text: str, place: int, table: Table) -> None:
    """Read one element after the other, so that each row and each problem has its line."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        line += text.count("\n", counted, place)
        counted = place
        if place >= len(text):
            table.bad(
                line, "the array is not closed; expected ] at the end of the file"
            )
            return
        if text[place] == "]":
            return
        try:
            values, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            message = f"is not JSON: {error}; expected an array of JSON objects"
            table.bad(getattr(error, "lineno", line), message)
            return
        _add_object(table, line, values)


def _read_object(whole: Any, table: Table) -> None:
    """Read what one JSON value contains: a list of rows under a key, rows by id, or one row."""
    if not isinstance(whole, dict):
        table.bad(1, f"expected an array of JSON objects, got {type(whole).__name__}")
        return
    lists = [k for k, v in whole.items() if _is_rows(v)]
    if len(lists) == 1 and not _is_conversation(whole[lists[0]]):
        table.notes.append(f"rows under {lists[0]!r}")
        rows: list[Any] = whole[lists[0]]
    elif len(lists) > 1 and all(
        k in lists and not _is_conversation(v) for k, v in whole.items()
    ):
        names = ", ".join(map(repr, lists))
        table.bad(
            1, f"has several lists of rows, {names}; save each as a file of its own"
        )
        return
    elif (columns := _columns(whole)) is not None:
        table.notes.append("one list per column")
        rows = columns
    elif len(whole) > 1 and all(isinstance(v, dict) for v in whole.values()):
        rows = [{"id": key, **value} for key, value in whole.items()]
    else:
        rows = [whole]
    for number, values in enumerate(rows, 1):
        _add_object(table, number, values)


def _columns(whole: dict[str, Any]) -> list[Any] | None:
    """Return the rows of an object with a list for each column, or an object by number as pandas writes.

    Lists of lists or objects may as well be a single row's messages and options, and are left as they are.
    """
    values = [
        list(v.values()) if isinstance(v, dict) and list(v) == _numbers(v) else v
        for v in whole.values()
    ]
    alike = len(values) > 1 and all(
        isinstance(v, list) and len(v) == len(values[0]) for v in values
    )
    plain = alike and all(not isinstance(x, (list, dict)) for v in values for x in v)
    if not plain or not values[0]:
        return None
    return [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]


def _numbers(value: dict[str, Any]) -> list[str]:
    return [str(i) for i in range(len(value))]


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, dict) for v in value)
    )


def _is_conversation(rows: list[dict[str, Any]]) -> bool:
    return all(
        {"role", "content"} <= set(r) or {"from", "value"} <= set(r) for r in rows
    )


def _read_text(text: str, table: Table, unit: str) -> None:
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


def _read_arrow(source: FileSource, table: Table) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise EnvironmentFault(
            f"{source.name}: {source.suffix} files need pyarrow: pip install 'mgk[data]'"
        ) from None
    try:
        if source.suffix == ".parquet":
            found = parquet.read_table(source.path)
        else:
            found = _arrow_table(pa, source.path)
    except (OSError, pa.ArrowException) as error:
        kind = source.suffix.removeprefix(".")
        table.bad(None, f"cannot be read as {kind}: {error}; write the file again")
        return
    _add_rows(table, found.to_pylist())


def _arrow_table(pa: Any, path: Path) -> Any:
    """Read either of Arrow's two file formats; ``datasets`` writes the stream."""
    with pa.OSFile(str(path)) as file:
        try:
            return pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_file(file).read_all()


def _add_rows(table: Table, rows: Any) -> None:
    for number, values in enumerate(rows, 1):
        table.add(number, {clean_name(key): value for key, value in values.items()})


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise EnvironmentFault(
            f"{name}: this source needs datasets: pip install 'mgk[data]'"
        ) from None
    return datasets


def _read_saved(source: SavedSource, table: Table) -> None:
    datasets = _datasets(source.name)
    try:
        found = datasets.load_from_disk(str(source.path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        table.bad(None, f"cannot be read as a saved data set: {error}; save it again")
        return
    if isinstance(found, datasets.DatasetDict):
        found = _part(found, source, table)
    if found is not None:
        _add_rows(table, found)


def _part(found: Mapping[str, Any], source: SavedSource, table: Table) -> Any:
    """Return the split of a saved dict that the setting is named after."""
    for name in SPLIT_NAMES.get(source.split, ()):
        if name in found:
            table.notes.append(f"split {name}")
            return found[name]
    table.bad(
        None,
        f"has no {source.split} split, but {', '.join(found)}; name one as a folder: {source.name}/NAME",
    )
    return None


def _read_hub(source: HubSource, table: Table) -> None:
    datasets = _datasets(source.name)
    try:
        rows = datasets.load_dataset(
            source.repository,
            source.config,
            split=source.split,
            revision=source.revision,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EnvironmentFault(
            f"{source.name}: {reason}; check name, config and split, log in with 'hf auth login'"
            " if it is gated, or download it and name the file"
        ) from None
    _add_rows(table, rows)
