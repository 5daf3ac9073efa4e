"""Rows of files that are larger than memory: where each begins is kept, and a row is read when it is needed."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from mgk_core.contract.cache import cache_directory
from mgk_core.contract.errors import InputError, Problem
from mgk_text.sources import FileSource, Source
from mgk_text.table import Raw

CHUNK = 512
"""Rows that are read and encoded together."""
_BOM = b"\xef\xbb\xbf"


@define(eq=False)
class Lines:
    """The rows of JSON-lines files. files, numbers, starts: of each row, which file, line and byte.

    problems: lines that are not JSON objects, in the order in which they were met.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    files: array[int] = field(factory=lambda: array("i"))
    numbers: array[int] = field(factory=lambda: array("q"))
    starts: array[int] = field(factory=lambda: array("q"))
    problems: list[Problem] = field(factory=list)

    @classmethod
    def of(cls, sources: Sequence[Source]) -> Lines:
        """Return the rows of sources; Parquet files are copied into the cache as lines once.

        :raises InputError: a source is of another form
        """
        paths = tuple(_lines_file(source) for source in sources)
        return cls(paths, tuple(str(getattr(s, "name", s)) for s in sources))

    def __len__(self) -> int:
        return len(self.starts)

    def chunks(self, size: int = CHUNK) -> Iterator[list[Raw]]:
        """Read all files once from the beginning, and note where each row begins."""
        chunk = list[Raw]()
        for number in range(len(self.paths)):
            for raw in self._scan(number):
                chunk.append(raw)
                if len(chunk) == size:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk

    def read(self, row: int) -> Raw:
        """Return one row."""
        number = self.files[row]
        with self.paths[number].open("rb") as file:
            file.seek(self.starts[row])
            values = json.loads(file.readline().removeprefix(_BOM))
        return Raw(self.names[number], self.numbers[row], values)

    def _scan(self, number: int) -> Iterator[Raw]:
        name, start = self.names[number], 0
        with self.paths[number].open("rb") as file:
            for line, content in enumerate(file, start=1):
                text = content.removeprefix(_BOM) if line == 1 else content
                if text.strip():
                    values = self._values(text, name, line)
                    if values is not None:
                        self.files.append(number)
                        self.numbers.append(line)
                        self.starts.append(start)
                        yield Raw(name, line, values)
                start += len(content)

    def _values(self, text: bytes, name: str, line: int) -> dict[str, Any] | None:
        try:
            values = json.loads(text)
        except ValueError as error:  # bytes that are not UTF-8 included
            values, reason = None, f"expected a JSON object: {error}"
        else:
            reason = f"expected a JSON object, got {text[:40]!r}"
        if isinstance(values, dict):
            return values
        self.problems.append(Problem("", reason, name, line))
        return None


def _lines_file(source: Source) -> Path:
    """Return a file of JSON lines with a source's rows."""
    if not isinstance(source, FileSource):
        raise InputError(f"stream: {source} is not a file; expected .jsonl or .parquet")
    if source.suffix in (".jsonl", ".ndjson") and not source.compression:
        return source.path
    if source.suffix == ".parquet" and not source.compression:
        return _copied(source.path)
    raise InputError(
        f"stream: {source.path}: expected .jsonl (not compressed) or .parquet; convert it, or"
        " leave stream out"
    )


def _copied(path: Path) -> Path:
    """Copy a Parquet file's rows into a file of the cache, a group of rows at a time."""
    from pyarrow.parquet import ParquetFile

    facts = path.stat()
    folder = cache_directory() / "stream"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{path.stem}-{facts.st_size}-{facts.st_mtime_ns}.jsonl"
    if copy.is_file():
        return copy
    partial = copy.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for batch in ParquetFile(path).iter_batches(batch_size=CHUNK):
            for row in batch.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    partial.replace(copy)
    return copy
