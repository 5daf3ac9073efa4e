"""Training sets that are larger than memory (``data.stream``).

One pass reads, checks and encodes all rows, and keeps of each example only where its row is, its length and a
digest. A batch reads its rows again. The order of training is the one of data in memory: any example may come
at any step, and the position in the data is the step's number, so that a run resumes as any other.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from mgk_core.contract.bundle import Batch, ChecksItems, Tokens
from mgk_core.contract.errors import DataError, InputError, Problem
from mgk_text import contamination, lengths, packing
from mgk_text.cache import Groups, TokenCache
from mgk_text.encode import Encoder
from mgk_text.fields import BadRowError
from mgk_text.lines import Lines
from mgk_text.problems import several, summary
from mgk_text.records import Record, fingerprint
from mgk_text.rows import Make, Reader
from mgk_text.specs import TextDataSpec
from mgk_text.table import Raw, Table

if TYPE_CHECKING:
    from mgk_text.load import Maker

KINDS = ("text", "chat", "instruction")
MOST_PROBLEMS = 1000
"""Bad rows after which reading stops: the first ones are enough to fix a file."""
SAMPLE = 8
"""Examples that are kept, for the verification batches."""


class Uncached(TokenCache):
    """Encodes without keeping anything."""

    def get(self, encoder: Encoder, items: Sequence[Any], make: Any) -> Groups:
        """Return what ``make`` returns."""
        found: Groups = make()
        return found


@frozen
class Size:
    """An example by its length alone, as packing needs it."""

    ids: range
    number: int


@define(eq=False)
class StreamRows:
    """Rows of examples that are read when a batch asks for them.

    row_of, piece_of: of each example, the row of the files that it comes from, and which of that
    row's examples it is. groups: the examples of each training row.
    """

    maker: Maker = field(repr=False)
    lines: Lines = field(repr=False)
    make: Make = field(repr=False)
    limit: int
    row_of: array[int] = field(repr=False, factory=lambda: array("q"))
    piece_of: array[int] = field(repr=False, factory=lambda: array("i"))
    sizes: array[int] = field(repr=False, factory=lambda: array("i"))
    groups: list[array[int]] = field(repr=False, factory=list)
    digest: str = ""

    def __len__(self) -> int:
        return len(self.groups) or len(self.sizes)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Read, encode and collate rows, in the order given."""
        numbers = [
            number
            for row in rows
            for number in (self.groups[row] if self.groups else (row,))
        ]
        return self.maker.bundle.pack([self.example(number) for number in numbers])

    def example(self, number: int) -> Tokens:
        """Return one example."""
        record = self.make(self.lines.read(self.row_of[number]))
        return self.examples([record])[0][self.piece_of[number]]

    def examples(self, records: Sequence[Record]) -> list[list[Tokens]]:
        """Return the examples of each record, each short enough."""
        maker = self.maker
        made = maker.task.learnt(maker.encoder, records, Uncached(on_disk=False))
        found: dict[str, list[Tokens]] = {record.place: [] for record in records}
        for example, place in zip(made.examples, made.places, strict=True):
            found[place] += self._fitting(example, place)
        return [found[record.place] for record in records]

    def pack(self, length: int) -> float:
        """Put examples together into rows of a length; return how full these are."""
        sizes: Any = [Size(range(n), i) for i, n in enumerate(self.sizes)]
        rows: Any = packing.pack(sizes, length)
        self.groups = [array("q", (one.number for one in row)) for row in rows]
        return packing.fill(rows, length)

    def _fitting(self, example: Tokens, place: str) -> Sequence[Tokens]:
        if len(example.ids) <= self.limit:
            return (example,)
        return lengths.fit(
            [example],
            self.limit,
            self.maker.task.overflow,
            what="train",
            places=[place],
            key="length" if self.maker.task.length else "max_length",
            head=self.maker.encoder.head,
        ).examples


@frozen
class Streamed:
    """A training set with the first of its examples, and notes on it."""

    rows: StreamRows
    sample: tuple[Tokens, ...]
    notes: tuple[str, ...]


def check_streams(spec: TextDataSpec) -> None:
    """Refuse settings that need all rows at once.

    :raises InputError: names the setting and what to do
    """
    if spec.type not in KINDS:
        raise InputError(
            f"stream: reads {', '.join(KINDS)} data, and these are {spec.type!r};"
            " leave stream out"
        )
    for name in ("dev_share", "test_share", "weights", "interleave"):
        if getattr(spec, name):
            raise InputError(
                f"{name}: needs all rows in memory; name files of their own for dev and test,"
                " or leave stream out"
            )


def stream(maker: Maker, reader: Reader, held: Sequence[Record]) -> Streamed:
    """Read the training files once.

    :param held: rows of probes, for the check of contamination
    :raises DataError: bad rows, unless they are skipped
    """
    spec = maker.spec
    lines = Lines.of(reader.sources(spec.train, "train"))
    chunks = lines.chunks()
    first = next(chunks, None)
    if first is None:
        raise DataError(summary(lines.problems or [Problem("train", "has no rows")]))
    read = reader.maker_of(Table(first[0].file, rows=first))
    limit = maker.task.length or spec.max_length
    taken = Pass(spec, StreamRows(maker, lines, read.make, limit), held)
    for chunk in itertools.chain([first], chunks):
        taken.add(chunk)
        if taken.full or len(taken.problems) + len(lines.problems) > MOST_PROBLEMS:
            break
    problems = [*lines.problems, *taken.problems]
    if problems and not spec.skip_bad_rows:
        raise DataError(summary(problems))
    return taken.done(read.title, len(problems))


@define(eq=False)
class Pass:
    """What is found out while the rows are read for the first time."""

    spec: TextDataSpec
    rows: StreamRows
    held: Sequence[Record] = field(repr=False)
    problems: list[Problem] = field(factory=list)
    sample: list[Tokens] = field(factory=list)
    seen: set[bytes] = field(factory=set)
    taken: int = 0
    repeated: int = 0
    shared: list[contamination.Overlap] = field(factory=list)
    contaminated: int = 0
    learnt: int = 0
    unread: dict[str, None] = field(factory=dict)
    state: Any = field(factory=lambda: hashlib.blake2b(digest_size=32))
    _row: int = 0

    @property
    def full(self) -> bool:
        """Whether ``limit`` rows are taken."""
        return self.spec.limit is not None and self.taken >= self.spec.limit

    def add(self, chunk: Sequence[Raw]) -> None:
        """Take the rows of a chunk."""
        kept = list[Record]()
        places = list[int]()
        for row, record in self._records(chunk):
            if self._wanted(record) and not self.full:
                kept.append(record)
                places.append(row)
                self.taken += 1
        gone = self._contaminated(kept)
        pairs = zip(places, kept, strict=True)
        left = [(row, record) for row, record in pairs if id(record) not in gone]
        places, kept = [row for row, _ in left], [record for _, record in left]
        self.problems += self.rows.maker.task.problems(kept)
        groups = self.rows.examples(kept)
        for row, examples in zip(places, groups, strict=True):
            for piece, example in enumerate(examples):
                self._take(row, piece, example)

    def _records(self, chunk: Sequence[Raw]) -> Iterator[tuple[int, Record]]:
        for raw in chunk:
            try:
                yield self._row, self.rows.make(raw)
            except BadRowError as error:
                where = Problem(error.column, str(error), raw.file, raw.line)
                self.problems.append(where)
            self._row += 1

    def _wanted(self, record: Record) -> bool:
        """Whether a row is not there already, or repeated rows are wanted."""
        key = fingerprint(record)
        repeats = key in self.seen
        self.seen.add(key)
        self.repeated += repeats
        return not (repeats and self.spec.deduplicate)

    def _contaminated(self, records: Sequence[Record]) -> set[int]:
        """Treat rows that share text with held-out ones; return those to leave out."""
        found = contamination.overlaps(
            records, self.held, self.spec.contamination_words
        )
        self.contaminated += len(found)
        self.shared += found[: max(0, 4 - len(self.shared))]
        if found and self.spec.contamination == "refuse":
            raise contamination.refusal(found)
        drop = self.spec.contamination == "drop"
        return {id(one.row) for one in found} if drop else set()

    def _take(self, row: int, piece: int, example: Tokens) -> None:
        rows = self.rows
        rows.row_of.append(row)
        rows.piece_of.append(piece)
        rows.sizes.append(len(example.ids))
        self.learnt += lengths.learnt_in(example)
        self.state.update(json.dumps([example.ids, example.labels]).encode())
        if len(self.sample) < SAMPLE:
            self.sample.append(example)
        if isinstance(rows.maker.bundle, ChecksItems):
            notes = rows.maker.bundle.check_items([example])
            self.unread.update(dict.fromkeys(notes))

    def done(self, title: str, bad: int) -> Streamed:
        """Return the training set, packed where its task packs."""
        rows, spec = self.rows, self.spec
        if not rows.sizes:
            raise InputError(f"data {spec.type!r}: no training examples are left")
        rows.digest = self.state.hexdigest()
        tokens = several(sum(rows.sizes), "token")
        first = (
            f"train: streamed as {title}; {several(self.taken, 'row')},"
            f" {several(len(rows.sizes), 'example')}, {tokens}, {self.learnt:,} of them learnt"
        )
        notes = [first, *self.unread]
        if bad:
            notes.append(f"{several(bad, 'bad row')} left out")
        if self.repeated:
            what = "left out" if spec.deduplicate else "kept"
            notes.append(
                f"{several(self.repeated, 'training row')} seen before: {what}"
            )
        if self.contaminated:
            notes.append(
                contamination.note(
                    self.shared,
                    dropped=spec.contamination == "drop",
                    count=self.contaminated,
                )
            )
        if length := rows.maker.task.length:
            full = rows.pack(length)
            notes.append(
                f"train: packed into {several(len(rows), 'row')} of {length} tokens, {full:.0%} full"
            )
        return Streamed(rows, tuple(self.sample), tuple(notes))
