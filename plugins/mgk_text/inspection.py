"""What ``mgk data`` finds out about files: their type, lengths, repeated and bad rows, examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import field, frozen

from mgk_core.contract.bundle import LanguageBundle, Tokens
from mgk_core.contract.errors import Problem
from mgk_text import packing
from mgk_text.cache import IGNORED, Learnt, TokenCache
from mgk_text.contamination import overlaps
from mgk_text.dialogue_tasks import PreferenceTask
from mgk_text.lengths import learnt_in, truncated
from mgk_text.load import Maker, maker_of
from mgk_text.probes import spread
from mgk_text.records import Record, fingerprint
from mgk_text.rows import Reader, settled
from mgk_text.specs import AutoSpec, TextDataSpec

_BINS = 12
_SHORTEST = 64  # tokens: the first limit that truncation is counted for


@frozen
class Bin:
    """Examples of ``first`` to ``last`` tokens."""

    first: int
    last: int
    count: int


@frozen
class Truncation:
    """What a limit of ``max_length`` tokens costs: examples that are longer, learnt tokens beyond it.

    nothing: examples in which no learnt token is left.
    """

    max_length: int
    longer: int
    lost: int
    nothing: int


@frozen
class Lengths:
    """Token counts of all training examples."""

    examples: int
    tokens: int
    learnt: int
    median: int
    high: int
    longest: int
    bins: tuple[Bin, ...]
    truncation: tuple[Truncation, ...]


@frozen
class Part:
    """A stretch of an example's text that is learnt as a whole, or not at all."""

    text: str
    learnt: bool


@frozen
class Example:
    """One training example as the model reads it."""

    place: str
    parts: tuple[Part, ...]


@frozen
class Inspection:
    """Everything that is known of some files without training on them.

    shared: training rows that share text with held-out ones, if any are given.
    """

    type: str
    rows: int
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    repeated: tuple[str, ...]
    shared: tuple[str, ...] = ()
    lengths: Lengths | None = None
    examples: tuple[Example, ...] = field(default=())


def inspect(
    spec: TextDataSpec,
    bundle: LanguageBundle,
    *,
    shown: int = 3,
    probes: tuple[str, ...] = (),
) -> Inspection:
    """Read the training files of a spec and describe them; nothing is trained.

    :param shown: how many examples are rendered, spread over all rows
    :param probes: files of held-out rows, of any type, that training rows must share no text with
    :raises DataError: nothing in the files can be read
    """
    held = _held(probes)
    reader = Reader(spec)
    spec = reader.spec = settled(spec, reader)
    records = reader.records(spec.train).records
    maker = maker_of(spec, bundle)
    problems = (*reader.problems, *maker.task.problems(records))
    made = _learnt(maker, records)
    notes = (
        *reader.notes,
        *maker.encoder.conversation.notes,
        *_packed(maker, made.examples),
    )
    return Inspection(
        type=spec.type,
        rows=len(records),
        notes=notes,
        problems=problems,
        repeated=tuple(_repeated(records)),
        shared=tuple(map(str, overlaps(records, held, spec.contamination_words))),
        lengths=_lengths(made.examples, spec.max_length) if made.examples else None,
        examples=tuple(_rendered(maker, made, shown)),
    )


def _held(probes: tuple[str, ...]) -> list[Record]:
    """Read the rows of probes, each file as what it is recognised as.

    :raises DataError: rows that cannot be read
    """
    found = list[Record]()
    for source in probes:
        reader = Reader(AutoSpec(type="auto", train=source))
        found += reader.records(source, "test").records
        reader.check()
    return found


def _learnt(maker: Maker, records: Sequence[Record]) -> Learnt:
    cache = TokenCache(on_disk=False)
    if isinstance(maker.task, PreferenceTask):
        return maker.task.every_answer(maker.encoder, records, cache)
    return maker.task.learnt(maker.encoder, records, cache)


def _packed(maker: Maker, examples: Sequence[Tokens]) -> list[str]:
    """Return how plain text is packed into rows."""
    length = maker.task.length
    if length is None:
        return []
    rows = packing.pack([e for e in examples if len(e.ids) <= length], length)
    longer = sum(len(e.ids) > length for e in examples)
    full = packing.fill(rows, length)
    return [
        f"rows of {length} tokens: {full:.0%} full; {longer:,} longer texts are split first"
    ]


def _repeated(records: Sequence[Record]) -> Iterator[str]:
    first: dict[bytes, Record] = {}
    for record in records:
        before = first.setdefault(fingerprint(record), record)
        if before is not record:
            yield f"{record.place} = {before.place}"


def _lengths(examples: Sequence[Tokens], max_length: int) -> Lengths:
    counts = sorted(len(e.ids) for e in examples)
    return Lengths(
        examples=len(counts),
        tokens=sum(counts),
        learnt=sum(map(learnt_in, examples)),
        median=counts[len(counts) // 2],
        high=counts[min(len(counts) - 1, int(0.95 * len(counts)))],
        longest=counts[-1],
        bins=tuple(_bins(counts)),
        truncation=tuple(_truncations(examples, max_length, counts[-1])),
    )


def _bins(counts: Sequence[int]) -> Iterator[Bin]:
    """Part lengths into bins of equal width, from the shortest to the longest."""
    width = -(-(counts[-1] - counts[0] + 1) // _BINS)
    for first in range(counts[0], counts[-1] + 1, width):
        last = first + width - 1
        yield Bin(first, last, sum(first <= count <= last for count in counts))


def _truncations(
    examples: Sequence[Tokens], max_length: int, longest: int
) -> Iterator[Truncation]:
    """Count the cost of max_length, and of the powers of two below the longest example."""
    powers = itertools.takewhile(
        lambda n: n < longest, (_SHORTEST << i for i in range(20))
    )
    for limit in sorted({max_length, *powers}):
        longer = [e for e in examples if len(e.ids) > limit]
        kept = [learnt_in(truncated(e, limit)) for e in longer]
        lost = sum(map(learnt_in, longer)) - sum(kept)
        yield Truncation(limit, len(longer), lost, kept.count(0))


def _rendered(maker: Maker, made: Learnt, count: int) -> Iterator[Example]:
    numbers = spread(range(len(made.examples)), count)
    for number in numbers:
        parts = tuple(_parts(maker.bundle.tokenizer, made.examples[number]))
        yield Example(made.places[number], parts)


def _parts(tokenizer: Any, example: Tokens) -> Iterator[Part]:
    pairs = zip(example.ids, example.labels, strict=True)
    for learnt, run in itertools.groupby(pairs, lambda pair: pair[1] != IGNORED):
        yield Part(tokenizer.decode([token for token, _ in run]), learnt)
