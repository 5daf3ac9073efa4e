"""From raw rows to records: every bad row is reported, and what was recognised is noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from attrs import define, field, fields, frozen

from mgk_core.contract.errors import DataError, InputError, Problem
from mgk_text import answers, dialogues, layouts, pictures
from mgk_text.fields import BadRowError, Fields
from mgk_text.layouts import Columns, Layout
from mgk_text.lines import Lines
from mgk_text.problems import several, summary
from mgk_text.readers import read
from mgk_text.records import Record
from mgk_text.sources import Source, as_tuple, find
from mgk_text.specs import (
    SPECS,
    AutoSpec,
    DictionarySpec,
    McqSpec,
    PlainTextSpec,
    TextDataSpec,
)
from mgk_text.table import Format, Raw, Table

Make = Callable[[Raw], Record]
_NAMED = 12  # columns that a note names
_HEAD = 100  # rows whose columns show what a file is


@frozen
class Read:
    """Records of one setting, and how many rows were left out because they were bad.

    sizes: how many records each entry of the setting has.
    """

    records: tuple[Record, ...] = ()
    skipped: int = 0
    sizes: tuple[int, ...] = ()

    @property
    def by_setting(self) -> list[tuple[Record, ...]]:
        """The records of each entry of the setting: a file, a folder, a glob."""
        ends = list(accumulate(self.sizes))
        return [self.records[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@frozen
class Reading:
    """How rows are read. make: a record of a row. title: the layout with its columns."""

    make: Make
    title: str


@frozen
class Part:
    """The records of one source, with what is wrong in it."""

    name: str
    records: list[Record]
    problems: list[Problem]
    layout: Layout
    used: str
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@define
class Reader:
    """Reads the records of one phase's data by its spec.

    Problems gather until `check`, so that bad rows of all sources are reported together.
    """

    spec: TextDataSpec
    problems: list[Problem] = field(factory=list)
    notes: list[str] = field(factory=list)
    _tables: dict[Source, Table] = field(factory=dict)

    def records(self, setting: str | tuple[str, ...], split: str = "train") -> Read:
        """Read every record of one or several sources of the spec's own kind."""
        kinds = layouts.KINDS if isinstance(self.spec, AutoSpec) else self.spec.readable
        return self._read(setting, split, kinds, self.spec.layout, self.spec.columns)

    def foreign(
        self, setting: str | tuple[str, ...], kind: str, layout: str = "auto"
    ) -> Read:
        """Read records of a given kind, whatever the spec's own: the base's texts and questions."""
        return self._read(setting, "test", (kind,), layout, {})

    def sources(self, setting: str | tuple[str, ...], split: str) -> list[Source]:
        """Return the files that a setting names."""
        return [source for name in as_tuple(setting) for source in find(name, split)]

    def maker_of(self, table: Table) -> Reading:
        """Return what makes records of a table's rows, by the columns of those that it has."""
        spec = self.spec
        found = self._layout(table, spec.readable, spec.layout, spec.columns)
        mapped = Columns.of(
            found or layouts.default(spec.readable[0]), table, spec.columns
        )
        title = f"{mapped.layout.title} ({mapped.used(table)})"
        return Reading(self._maker(table, mapped), title)

    def recognised(self) -> str:
        """Return the kind of the first training source, as its columns show it.

        :raises InputError: no layout fits; the message names the columns
        """
        source = find(as_tuple(self.spec.train)[0], "train")[0]
        table = self._head(source)
        if not table.rows:
            raise DataError(summary(table.problems))
        found = self._layout(table, layouts.KINDS, self.spec.layout, self.spec.columns)
        if found is None:
            names = ", ".join(layouts.described(table)[:20])
            raise InputError(
                f"{table.name}: the columns {names} do not show which type these data have;"
                f" set type to one of {', '.join(sorted(layouts.KINDS))} and map its fields,"
                ' such as columns = { text = "body" }; expected fields are in docs/how-to/own-data.md'
            )
        return found.kind

    def check(self) -> None:
        """Raise one `DataError` with the problems met so far, many of a kind as a count."""
        if self.problems:
            raise DataError(summary(self.problems))

    def _read(
        self,
        setting: str | tuple[str, ...],
        split: str,
        kinds: Sequence[str],
        layout: str,
        columns: dict[str, str],
    ) -> Read:
        parts = list[Part]()
        sizes = list[int]()
        for name in as_tuple(setting):
            before = len(parts)
            for source in find(name, split):
                table = self._table(source)
                parts.append(self._part(table, kinds, layout, columns))
                self._tables.pop(source, None)
            sizes.append(sum(len(part.records) for part in parts[before:]))
        self.notes += _notes(split, parts)
        records = tuple(record for part in parts for record in part.records)
        bad = [problem for part in parts for problem in part.problems]
        if not self.spec.skip_bad_rows:
            self.problems += bad
        elif bad and not records:
            raise DataError(summary(bad))
        skipped = len(bad) if self.spec.skip_bad_rows else 0
        return Read(records, skipped, tuple(sizes))

    def _head(self, source: Source) -> Table:
        """Return a source's first rows alone where it is too large to be read whole."""
        if not self.spec.stream:
            return self._table(source)
        lines = Lines.of([source])
        rows = next(lines.chunks(_HEAD), [])
        return Table(str(source), rows, lines.problems)

    def _table(self, source: Source) -> Table:
        if source not in self._tables:
            spec = self.spec
            unit = spec.txt_unit if isinstance(spec, PlainTextSpec) else "paragraph"
            known = layouts.known_columns(spec.columns)
            how = Format(spec.encoding, spec.delimiter, spec.header, unit, known)
            self._tables[source] = read(source, how)
        return self._tables[source]

    def _layout(
        self, table: Table, kinds: Sequence[str], layout: str, columns: dict[str, str]
    ) -> Layout | None:
        if layout != layouts.AUTO:
            return layouts.named(layout, kinds)
        found = layouts.recognise(table.columns, kinds)
        inner = layouts.described(table)
        return found or layouts.recognise((*table.columns, *inner, *columns), kinds)

    def _part(
        self, table: Table, kinds: Sequence[str], layout: str, columns: dict[str, str]
    ) -> Part:
        """Make a record of every row that is right."""
        found = self._layout(table, kinds, layout, columns) or layouts.default(kinds[0])
        mapped = Columns.of(found, table, columns)
        make = self._maker(table, mapped)
        notes = tuple(table.notes)
        unused = tuple(mapped.unused(table))
        part = Part(
            table.name, [], [*table.problems], found, mapped.used(table), notes, unused
        )
        for raw in table.rows:
            try:
                part.records.append(make(raw))
            except BadRowError as error:
                part.problems.append(
                    Problem(error.column, str(error), raw.file, raw.line)
                )
        return part

    def _maker(self, table: Table, columns: Columns) -> Make:
        fields = Fields(
            columns, None if self.spec.normalise == "none" else self.spec.normalise
        )
        kind = columns.layout.kind
        if kind == "text":
            return fields.text
        if kind == "dictionary":
            needed = (
                isinstance(self.spec, DictionarySpec) and self.spec.needs_definition
            )
            return lambda raw: fields.entry(raw, definition=needed)
        if kind == "mcq":
            counting = self._counting(table, fields)
            return lambda raw: fields.question(raw, counting)
        if kind == "image-chat":
            return lambda raw: pictures.image_chat(fields, raw)
        make: Any = getattr(dialogues, kind)
        return lambda raw: make(fields, raw)

    def _counting(self, table: Table, fields: Fields) -> str:
        """Return how a file counts its answers; `InputError` where that is unclear."""
        if isinstance(self.spec, McqSpec) and self.spec.answers != "auto":
            return self.spec.answers
        if fields.columns.layout.answers != "auto":
            return fields.columns.layout.answers
        found = answers.detect([_given(fields, raw) for raw in table.rows])
        if found is None:
            raise InputError(f"{table.name}: {answers.AMBIGUOUS}")
        return found


def settled(spec: TextDataSpec, reader: Reader) -> TextDataSpec:
    """Return the spec of the type that the data are recognised as, where none is named."""
    if not isinstance(spec, AutoSpec):
        return spec
    kind = reader.recognised()
    shared = {
        a.name: getattr(spec, a.name) for a in fields(AutoSpec) if a.name != "type"
    }
    return SPECS[kind](type=kind, **shared)


def _given(fields: Fields, raw: Raw) -> answers.Given:
    """Return a row's answer; one without options if they are wrong, which is reported later."""
    try:
        return fields.given(raw)
    except BadRowError:
        return answers.Given(None, ())


def _notes(split: str, parts: Sequence[Part]) -> list[str]:
    """Return what sources were read as: ``read as MedQA (question, options{A–D}); 812 rows``."""
    groups: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        # Files of one folder are reported together; what was guessed about one of them is not.
        groups.setdefault((part.layout.title, part.used, *part.notes), []).append(part)
    return [_note(split, group) for group in groups.values()]


def _note(split: str, group: Sequence[Part]) -> str:
    first = group[0]
    name = first.name if len(group) == 1 else f"{len(group)} files ({first.name} …)"
    what = f"{first.layout.title} ({first.used})" if first.used else first.layout.title
    rows = several(sum(len(p.records) for p in group), "row")
    if left := sum(len(p.problems) for p in group):
        rows += f", {left:,} left out"
    unused = list(dict.fromkeys(c for part in group for c in part.unused))
    said = [f"{split}: {name} read as {what}", rows, *first.notes]
    if unused:
        more = " …" if len(unused) > _NAMED else ""
        said.append(f"not used: {', '.join(unused[:_NAMED])}{more}")
    return "; ".join(said)
