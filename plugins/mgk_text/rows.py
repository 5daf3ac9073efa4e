"""From raw rows to records, with every bad row told at once."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen

from mgk_core.contract.errors import DataError, InputError, Problem
from mgk_text import answers
from mgk_text.columns import Columns, columns_for
from mgk_text.readers import Raw, Table, read
from mgk_text.records import LETTERS, Entry, Question, Record, Text
from mgk_text.sources import as_tuple, parse
from mgk_text.specs import DictionarySpec, McqSpec, PlainTextSpec, TextDataSpec


class BadRowError(ValueError):
    """One row is wrong. column: where in it."""

    def __init__(self, column: str, message: str) -> None:
        self.column = column
        super().__init__(message)


@frozen
class Read:
    """Records of one setting, and how many rows were left out because they were bad."""

    records: tuple[Record, ...] = ()
    skipped: int = 0


@define
class Reader:
    """Reads the records of one phase's data, as its spec says.

    Problems gather until `check`, so that bad rows of all sources are told together.
    """

    spec: TextDataSpec
    problems: list[Problem] = field(factory=list)

    def records(self, setting: str | tuple[str, ...]) -> Read:
        """Read every record of one or several sources of the spec's own kind."""
        kind = kind_of(self.spec)
        return self._read(setting, kind, columns_for(kind, self.spec.layout, self.spec.columns))

    def foreign(self, setting: str | tuple[str, ...], kind: str, layout: str = "mgk") -> Read:
        """Read records of a given kind, whatever the spec's own: the base's texts and questions."""
        return self._read(setting, kind, columns_for(kind, layout, {}))

    def _read(self, setting: str | tuple[str, ...], kind: str, columns: Columns) -> Read:
        found: list[Record] = []
        bad: list[Problem] = []
        for name in as_tuple(setting):
            unit = self.spec.txt_unit if isinstance(self.spec, PlainTextSpec) else "paragraph"
            table = read(parse(name), header=columns.header, txt_unit=unit)
            records, problems = self._table(table, kind, columns)
            found += records
            bad += problems
        if not self.spec.skip_bad_rows:
            self.problems += bad
        elif bad and not found:
            raise DataError(bad)
        return Read(tuple(found), len(bad) if self.spec.skip_bad_rows else 0)

    def check(self) -> None:
        """Raise one `DataError` with every problem met so far."""
        if self.problems:
            raise DataError(self.problems)

    def _table(
        self, table: Table, kind: str, columns: Columns
    ) -> tuple[list[Record], list[Problem]]:
        make = self._maker(table, kind, columns)
        records: list[Record] = []
        problems = list(table.problems)
        for raw in table.rows:
            try:
                records.append(make(raw))
            except BadRowError as error:
                problems.append(Problem(error.column, str(error), raw.file, raw.line))
        return records, problems

    def _maker(self, table: Table, kind: str, columns: Columns) -> Callable[[Raw], Record]:
        fields = Fields(columns, None if self.spec.normalise == "none" else self.spec.normalise)
        if kind == "text":
            return fields.text
        if kind == "dictionary":
            directions = (
                (*self.spec.directions, self.spec.probe_direction)
                if isinstance(self.spec, DictionarySpec)
                else ()
            )
            needed = any("definition" in d for d in directions)
            return lambda raw: fields.entry(raw, definition=needed)
        counting = self._counting(table, fields)
        return lambda raw: fields.question(raw, counting)

    def _counting(self, table: Table, fields: Fields) -> str:
        """Return how a file counts its answers; `InputError` where that cannot be told."""
        if isinstance(self.spec, McqSpec) and self.spec.answers != "auto":
            return self.spec.answers
        if fields.columns.layout == "kormedmcqa":
            return "1"
        values = [fields.columns.value(raw, "answer") for raw in table.rows]
        found = answers.detect(values, [fields.count(raw) for raw in table.rows])
        if found is None:
            raise InputError(f"{table.name}: {answers.AMBIGUOUS}")
        return found


def kind_of(spec: TextDataSpec) -> str:
    """Return which kind of data a spec reads."""
    if isinstance(spec, McqSpec):
        return "mcq"
    return "dictionary" if isinstance(spec, DictionarySpec) else "text"


@frozen
class Fields:
    """Takes the fields of one raw row. form: Unicode normal form, None to leave texts as they are."""

    columns: Columns
    form: Any

    def text(self, raw: Raw) -> Text:
        """Return a plain text."""
        return Text(self._string(raw, "text"), self._group(raw), _place(raw))

    def entry(self, raw: Raw, *, definition: bool) -> Entry:
        """Return a dictionary entry; definition: whether one is needed."""
        return Entry(
            ko=self._string(raw, "ko"),
            en=self._string(raw, "en"),
            definition=self._string(raw, "definition")
            if definition
            else self._maybe(raw, "definition"),
            specialty=self._specialty(raw),
            group=self._group(raw),
            place=_place(raw),
        )

    def question(self, raw: Raw, counting: str) -> Question:
        """Return a question with its options."""
        options = self.options(raw)
        if len(options) < 2 or not all(options):
            raise BadRowError(
                self.columns.said("options"),
                f"expected two options or more, none empty; got {list(options)}",
            )
        if len(options) > len(LETTERS):
            raise BadRowError(
                self.columns.said("options"),
                f"expected at most {len(LETTERS)} options, got {len(options)}",
            )
        if len(set(options)) < len(options):
            raise BadRowError(self.columns.said("options"), "two options are the same")
        answer = self.columns.value(raw, "answer")
        try:
            index = answers.index(answer, len(options), counting)
        except ValueError as error:
            raise BadRowError(self.columns.said("answer"), str(error)) from None
        return Question(
            question=self._string(raw, "question"),
            options=options,
            answer=index,
            reasoning=self._maybe(raw, "reasoning"),
            specialty=self._specialty(raw),
            group=self._group(raw),
            place=_place(raw),
        )

    def count(self, raw: Raw) -> int:
        """Return how many options a row has; 0 where they are wrong, which is told when the row is taken."""
        try:
            return len(self.options(raw))
        except BadRowError:
            return 0

    def options(self, raw: Raw) -> tuple[str, ...]:
        """Return the options, from a list or from one column a letter (up to the first that is missing)."""
        listed = self.columns.value(raw, "options")
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            if not all(isinstance(o, (str, int, float)) for o in listed):
                raise BadRowError(
                    self.columns.said("options"), f"expected texts, got {listed!r:.60}"
                )
            return tuple(self._clean(str(o)) for o in listed)
        found: list[str] = []
        for letter in LETTERS:
            value = self.columns.value(raw, letter)
            if value is None:
                break
            found.append(self._clean(str(value)))
        while found and not found[-1]:
            found.pop()  # a file for five options may leave the last cells of a question empty
        return tuple(found)

    def _string(self, raw: Raw, name: str) -> str:
        value = self.columns.value(raw, name)
        if value is None:
            known = ", ".join(sorted(map(str, raw.values))[:12])
            raise BadRowError(
                self.columns.said(name),
                f"missing; this row has {known}; map it with columns.{name}",
            )
        if not isinstance(value, str):
            raise BadRowError(self.columns.said(name), f"expected text, got {value!r:.40}")
        text = self._clean(value)
        if not text:
            raise BadRowError(self.columns.said(name), "is empty; fill it, or remove the row")
        return text

    def _maybe(self, raw: Raw, name: str) -> str:
        value = self.columns.value(raw, name)
        return "" if value is None else self._clean(str(value))

    def _specialty(self, raw: Raw) -> str:
        value = self._maybe(raw, "specialty")
        return value[:1] if self.columns.layout == "kcd" else value  # the chapter, nearly

    def _group(self, raw: Raw) -> str:
        value = self._maybe(raw, "group")
        if self.columns.layout == "kcd":
            return value[:3]  # A00 and A00.1 name almost the same disease
        return f"{self._specialty(raw)}/{value}" if value else ""

    def _clean(self, text: str) -> str:
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise BadRowError(
                "",
                "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; remove it",
            )
        return (unicodedata.normalize(self.form, text) if self.form else text).strip()


def _place(raw: Raw) -> str:
    return f"{raw.file}:{raw.line}"
