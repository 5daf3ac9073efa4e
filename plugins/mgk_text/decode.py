"""From a file's bytes to text: compression, encoding, and what to report about them."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib

from attrs import frozen

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_text.sources import FileSource
from mgk_text.table import Table

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@frozen
class _Candidate:
    """An encoding, and the characters that show that it is the right one."""

    encoding: str
    script: re.Pattern[str]


# In order of the harm that a wrong guess does: most byte pairs of CP949 are valid GB18030 too.
_CANDIDATES = (
    _Candidate("cp949", re.compile(r"[가-힣]")),
    _Candidate("shift_jis", re.compile(r"[ぁ-ヿ]")),
    _Candidate("gb18030", re.compile(r"[一-龥]")),
    _Candidate("cp1252", re.compile(r"[À-ÿ]")),
)
_GUESSED = (
    "cp949",
    "utf-16-le",
    "utf-16-be",
)  # read without asking; the others are only named
_SHARE = 0.8


def text_of(source: FileSource, table: Table, encoding: str = "") -> str:
    """Return a file's text; lines that cannot be decoded are problems of ``table``.

    :param encoding: the encoding that the user named; empty: UTF-8, UTF-16, or CP949 by content
    """
    data = _bytes(source, table)
    if encoding:
        return _named(data, encoding, table)
    marked = next((e for mark, e in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(marked)
    except UnicodeDecodeError:
        return _guessed(data, table)
    if marked.startswith(("utf-16", "utf-32")):
        table.notes.append(f"encoding {marked.upper()}")
    if "\0" in text[:4096] and (wide := likely(data)).startswith("utf-16"):
        return _guessed_as(data, wide, table)
    return _without_nulls(text, table)


def likely(data: bytes) -> str:
    """Return the encoding that bytes which are not UTF-8 probably have; empty where unknown."""
    sample = data[: 1 << 16]
    zeros = sample.count(0)
    if zeros > len(sample) // 4:
        return (
            "utf-16-le"
            if sample[1::2].count(0) >= sample[::2].count(0)
            else "utf-16-be"
        )
    for candidate in _CANDIDATES:
        try:
            text = data.decode(candidate.encoding)
        except UnicodeDecodeError:
            continue
        foreign = [c for c in text[: 1 << 16] if not c.isascii() and c.isalpha()]
        fitting = sum(bool(candidate.script.match(c)) for c in foreign)
        if foreign and fitting >= _SHARE * len(foreign):
            return candidate.encoding
    return ""


def _bytes(source: FileSource, table: Table) -> bytes:
    try:
        if source.compression == ".gz":
            with gzip.open(source.path) as file:
                return file.read()
        if source.compression == ".zst":
            return _zstandard(source)
        return source.path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        table.bad(None, f"cannot be decompressed: {error}; give the whole file")
    except OSError as error:
        reason = error.strerror or str(error)
        table.bad(None, f"cannot be read: {reason}; give a file that you may read")
    return b""


def _zstandard(source: FileSource) -> bytes:
    try:
        import pyarrow as pa
    except ImportError:
        raise EnvironmentFault(
            f"{source.name}: .zst files need pyarrow: pip install 'mgk[data]'"
        ) from None
    with pa.input_stream(str(source.path), compression="zstd") as stream:
        content: bytes = stream.read()
    return content


def _named(data: bytes, encoding: str, table: Table) -> str:
    try:
        text = data.decode(
            "utf-8-sig" if encoding.lower() in {"utf-8", "utf8"} else encoding
        )
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = "utf-8" if _is_utf8(data) else likely(data)
        hint = f"; it is probably {found}: set encoding = {found!r}" if found else ""
        table.bad(line, f"expected text in {encoding}, but this is not{hint}")
        return ""
    except LookupError:
        raise InputError(
            f"encoding: expected a name that Python knows, such as cp949, got {encoding!r}"
        ) from None
    return _without_nulls(text, table)


def _guessed(data: bytes, table: Table) -> str:
    """Decode as the encoding that fits the whole file; otherwise report the lines not in UTF-8."""
    found = likely(data)
    if found in _GUESSED:
        return _guessed_as(data, found, table)
    lines = list[str]()
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            table.bad(
                number, f"is not UTF-8 (byte {error.start} of the line){_advice(line)}"
            )
            lines.append("")
    return "\n".join(lines)


def _guessed_as(data: bytes, encoding: str, table: Table) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        table.bad(
            None,
            f"looks like {encoding}, but is damaged at byte {error.start}; save it as UTF-8",
        )
        return ""
    table.notes.append(f"encoding {encoding.upper()}, guessed; set encoding to fix it")
    return _without_nulls(text, table)


def _advice(line: bytes) -> str:
    found = likely(line)
    return (
        f"; it is probably {found}: save the whole file in one encoding, or set encoding = {found!r}"
        if found
        else "; save the file as UTF-8, or set encoding"
    )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _without_nulls(text: str, table: Table) -> str:
    """Report lines with null bytes, which no text has, and leave them out."""
    if "\0" not in text:
        return text
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            table.bad(
                number, "contains a null byte; expected a text file, saved as UTF-8"
            )
            lines[number - 1] = ""
    return "\n".join(lines)
