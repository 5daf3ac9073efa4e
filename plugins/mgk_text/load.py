"""What `mgk_load_data` returns for text data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

from attrs import evolve, field, frozen

from mgk_core.contract.bundle import (
    ChecksItems,
    LabelledAnswer,
    PhaseData,
    Probe,
    Speaks,
    Tokens,
    TrainSet,
)
from mgk_core.contract.conversation import Style
from mgk_core.contract.errors import InputError
from mgk_core.contract.specs import Spec
from mgk_text import divergence, lengths, packing, probes, stream
from mgk_text.cache import TokenCache, tokenised
from mgk_text.dialogue_tasks import PreferenceTask, alike
from mgk_text.encode import Encoder, Pair
from mgk_text.held import held_elsewhere
from mgk_text.items import LazyChoices
from mgk_text.records import Preference, Question, Record, Text
from mgk_text.rows import Reader, settled
from mgk_text.sources import as_tuple
from mgk_text.specs import (
    McqSpec,
    PlainTextSpec,
    StyledSpec,
    TextDataSpec,
    TextProbeSpec,
)
from mgk_text.splits import Splits, check_named
from mgk_text.splits import load as load_splits
from mgk_text.tasks import McqTask, Task, task_for
from mgk_text.trainset import (
    LabelledRows,
    PreferenceRows,
    QuestionRows,
    TokenRows,
)

_DEV_TOKENS = 1024  # of one dev batch
_VERIFY = (
    2,
    2,
    128,
)  # batches, examples and tokens each: some hundred rows of logits tell merged from live
_CALIBRATION_TOKENS = 512
_CHECKED = 8  # of the longest items of a probe


@frozen(eq=False)
class Maker:
    """Makes a phase's data: everything that its parts share."""

    spec: TextDataSpec
    bundle: Speaks = field(repr=False)
    encoder: Encoder
    task: Task
    cache: TokenCache

    def examples(self, records: Sequence[Record], split: str) -> lengths.Fitted:
        """Return a split's examples, each short enough, with the report on their lengths."""
        made = self.task.learnt(self.encoder, records, self.cache)
        limit, key = (
            (self.task.length, "length")
            if split == "train" and self.task.length
            else (self.spec.max_length, "max_length")
        )
        return lengths.fit(
            made.examples,
            limit,
            self.task.overflow,
            what=split,
            places=made.places,
            key=key,
            head=self.encoder.head,
        )

    def batches(
        self, examples: Sequence[Tokens], tokens: int, most: int | None = None
    ) -> tuple[object, ...]:
        """Return batches of a bounded size."""
        return tuple(
            self.bundle.pack(batch) for batch in packing.group(examples, tokens, most)
        )


def load(spec: TextDataSpec, bundle: object, others: Sequence[Spec] = ()) -> PhaseData:
    """Read, check, tokenise and pack a phase's data.

    :param others: where else rows are held out, which training must not share
    """
    check_named(spec)
    reader = Reader(spec)
    spec = reader.spec = settled(spec, reader)
    if spec.stream:
        stream.check_streams(spec)
    maker = maker_of(spec, bundle)
    texts = {n: reader.foreign(s, "text").records for n, s in spec.base_probes.items()}
    questions = {
        n: reader.foreign(s, "mcq", spec.base_layout).records
        for n, s in spec.base_questions.items()
    }
    base = [r for records in (*texts.values(), *questions.values()) for r in records]
    held = [*base, *held_elsewhere(others)]
    splits = load_splits(spec, reader, held)
    calibration = reader.foreign(spec.calibration, "text").records
    reader.problems += maker.task.problems(splits.train)
    reader.check()
    if isinstance(maker.task, PreferenceTask):
        splits = _fitting(maker, maker.task, splits)
    dev = maker.examples(splits.dev, "dev")
    train = _train(maker, reader, splits, held)
    known, cut = _calibration(maker, calibration)
    count, most, tokens = _VERIFY
    found = (
        *_own_probes(maker, splits),
        *_base_probes(maker, texts, questions),
        *_divergence(maker, splits.test),
    )
    unread = _readable(maker.bundle, [*train.sample, *dev.examples, *known], found)
    return PhaseData(
        train=train.rows,
        probes=found,
        dev=maker.batches(dev.examples, _DEV_TOKENS),
        verify=maker.batches(
            (dev.examples or train.sample)[: count * most], tokens, most
        )[:count],
        calibration=maker.batches(known, _CALIBRATION_TOKENS),
        held_out=_held_out(maker, dev, splits.dev),
        notes=(
            *splits.notes,
            *maker.encoder.conversation.notes,
            *train.notes,
            *unread,
            *((dev.note,) if dev.examples else ()),
            *cut,
            *_cached(maker),
            *_unmeasured(splits, base),
        ),
    )


@frozen
class Training:
    """A training set. sample: examples to verify and to check with; all, where they are in memory."""

    rows: TrainSet
    sample: Sequence[Tokens]
    notes: Sequence[str]


def _train(
    maker: Maker, reader: Reader, splits: Splits, held: Sequence[Record]
) -> Training:
    """Return the training set, in memory or streamed."""
    spec = maker.spec
    if spec.stream:
        found = stream.stream(maker, reader, [*splits.dev, *splits.test, *held])
        return Training(found.rows, found.sample, found.notes)
    train = maker.examples(splits.train, "train")
    if not train.examples:
        raise InputError(
            f"data {spec.type!r}: no training examples are left; lower dev_share and test_share, or raise max_length"
        )
    rows = _rows(maker, train)
    made = _train_set(maker, rows, splits.train)
    return Training(made, train.examples, (train.note, *_packed(maker, rows)))


def text_probe(spec: TextProbeSpec, name: str, bundle: object) -> Probe:
    """Return the perplexity of texts that come with no phase's data; sources take turns.

    :raises InputError: nothing can be read, or the base is not a language model
    """
    plain = PlainTextSpec(type="text", train=spec.source)
    maker = maker_of(plain, bundle)
    reader = Reader(plain)
    parts = [reader.foreign(source, "text").records for source in as_tuple(spec.source)]
    reader.check()
    rows = [r for turn in zip_longest(*parts) for r in turn if r is not None]
    texts = [cast("Text", row).text for row in rows[: spec.limit]]
    found = probes.perplexity(
        maker.encoder, texts, name, split="test", limit=spec.max_length
    )
    return evolve(found, items=found.items[: spec.limit])


def _fitting(maker: Maker, task: PreferenceTask, splits: Splits) -> Splits:
    """Return the splits without rows that are too long, and a note on how many were left out.

    Where any row is a single answer, all are: a pair becomes a good and a bad one.
    """
    whole = (splits.train, splits.dev, splits.test)
    single = not all(_paired(records) for records in whole)
    parts = [alike(records, single=single) for records in whole]
    kept = [
        tuple(task.fitting(maker.encoder, records, maker.cache)) for records in parts
    ]
    gone = sum(map(len, parts)) - sum(map(len, kept))
    notes = splits.notes
    if gone:
        notes = (
            *notes,
            f"{gone:,} rows over max_length {task.spec.max_length} left out",
        )
    train, dev, test = kept
    return Splits(train, dev, test, notes)


def _rows(maker: Maker, train: lengths.Fitted) -> list[packing.Row]:
    """Return the rows of the training set: packed where the task has a row length."""
    if maker.task.length:
        return packing.pack(train.examples, maker.task.length)
    return [(example,) for example in train.examples]


def _readable(
    bundle: object, examples: Sequence[Tokens], found: Sequence[Probe]
) -> tuple[str, ...]:
    """Let the bundle check, before anything is trained, that it can read examples and probe items.

    Of items that are encoded when they are scored, the longest are checked.
    """
    if not isinstance(bundle, ChecksItems):
        return ()
    sets = {id(probe.items): probe.items for probe in found}
    items = list[Any]()
    for one in sets.values():
        items += one.longest(_CHECKED) if isinstance(one, LazyChoices) else one
    return bundle.check_items([*examples, *items])


def _train_set(
    maker: Maker, rows: Sequence[packing.Row], records: Sequence[Record]
) -> TokenRows:
    """Return the training rows, with their options where those are contrasted."""
    made = TokenRows.of(maker.bundle, rows)
    if isinstance(maker.task, PreferenceTask):
        if not _paired(records):
            return _labelled(maker, rows, records)
        rejected = maker.task.rejected(maker.encoder, records, maker.cache)
        return PreferenceRows.with_rejected(made, rejected)
    if not isinstance(maker.spec, McqSpec) or not maker.spec.contrast:
        return made
    items = McqTask(maker.spec).items(cast("Sequence[Question]", records))
    return QuestionRows.with_choices(made, maker.encoder.choices(items))


def _paired(records: Sequence[Record]) -> bool:
    """Whether every preference has both answers."""
    return all(cast("Preference", record).paired for record in records)


def _labelled(
    maker: Maker, rows: Sequence[packing.Row], records: Sequence[Record]
) -> LabelledRows:
    """Return rows of single answers with their labels."""
    answers: list[LabelledAnswer] = []
    for row, record in zip(rows, records, strict=True):
        good = bool(cast("Preference", record).chosen)
        answers.append(LabelledAnswer(row[0], desirable=good))
    return LabelledRows.of_answers(maker.bundle, answers)


def _held_out(
    maker: Maker, dev: lengths.Fitted, records: Sequence[Record]
) -> TokenRows | None:
    """Return dev as rows, where a loss needs both answers of each."""
    if not isinstance(maker.task, PreferenceTask) or not dev.examples:
        return None
    return _train_set(maker, _rows(maker, dev), records)


def maker_of(spec: TextDataSpec, bundle: object) -> Maker:
    """Return what makes a phase's data on a base; `InputError` if it is not a language model."""
    if not isinstance(bundle, Speaks):
        raise InputError(
            f"data type {spec.type!r} needs a language model as base, with a tokenizer; this base is none"
        )
    if bundle.tokenizer is None:
        raise InputError(
            "this base has no tokenizer; text data needs a language model as base"
        )
    style: Style = "plain"
    if isinstance(spec, StyledSpec):
        style = cast("Style", spec.style)
    ends = isinstance(spec, PlainTextSpec) and spec.end_documents
    encoder = Encoder(bundle.conversation.styled(style), ends, bundle)
    return Maker(spec, bundle, encoder, task_for(spec), TokenCache(on_disk=spec.cache))


def _own_probes(maker: Maker, splits: Splits) -> tuple[Probe, ...]:
    """Return the probes of dev and test; those of dev carry its name, since names are unique."""
    made: list[Probe] = []
    pools = {"dev": splits.dev, "test": splits.test}
    for split, records in pools.items():
        if records:
            made += maker.task.probes(
                maker.encoder, records, splits.others(split), split
            )
    return tuple(made)


def _base_probes(
    maker: Maker,
    texts: Mapping[str, Sequence[Record]],
    questions: Mapping[str, Sequence[Record]],
) -> list[Probe]:
    """Return what no phase teaches: perplexities of texts, and questions scored on their options' content."""
    limit = maker.spec.max_length
    made = [
        probes.perplexity(
            maker.encoder,
            [cast("Text", r).text for r in records],
            name,
            split="test",
            limit=limit,
        )
        for name, records in texts.items()
    ]
    task = McqTask(McqSpec(type="mcq"))
    for name, records in questions.items():
        made += task.options(
            maker.encoder, cast("Sequence[Question]", records), name, "test"
        )
    return [evolve(probe, phase="base") for probe in made]


def _divergence(maker: Maker, records: Sequence[Record]) -> list[Probe]:
    """Return the probe of the divergence from the base; it counts as the base's own."""
    count = maker.spec.kl_items
    if not count:
        return []
    if not records:
        raise InputError(
            f"data {maker.spec.type!r}: kl_items needs test data; name test, or set test_share"
        )
    chosen = probes.spread(records, count)
    limit = maker.spec.max_length
    made = maker.task.learnt(maker.encoder, chosen, maker.cache)
    short = [lengths.truncated(example, limit) for example in made.examples]
    name = f"{maker.spec.probe_name}-kl"
    return [divergence.probe(maker.bundle, short[:count], name)]


def _calibration(
    maker: Maker, records: Sequence[Record]
) -> tuple[list[Tokens], tuple[str, ...]]:
    """Return calibration texts, spread evenly over the sources, cut to their setting's length."""
    spec = maker.spec
    count = min(spec.calibration_rows, len(records))
    chosen = [records[i * len(records) // count] for i in range(count)]
    pairs: list[Pair] = [("", r.text) for r in chosen]  # type: ignore[union-attr]
    whole = tokenised(evolve(maker.encoder, ends=False), pairs, maker.cache)
    cut = [
        Tokens(
            e.ids[: spec.calibration_tokens],
            e.labels[: spec.calibration_tokens],
            e.nbytes,
        )
        for e in whole
    ]
    if not cut:
        return [], ()
    shorter = sum(len(a.ids) > len(b.ids) for a, b in zip(whole, cut, strict=True))
    tokens = sum(len(e.ids) for e in cut)
    return cut, (
        f"calibration: {len(cut)} texts, {tokens:,} tokens; {shorter} cut to {spec.calibration_tokens}",
    )


def _packed(maker: Maker, rows: Sequence[packing.Row]) -> tuple[str, ...]:
    if not isinstance(maker.spec, PlainTextSpec):
        return ()
    full = packing.fill(rows, maker.spec.length)
    return (
        f"train: packed into {len(rows):,} rows of {maker.spec.length} tokens, {full:.0%} full",
    )


def _unmeasured(splits: Splits, base: Sequence[Record]) -> tuple[str, ...]:
    """Return a note if nothing measures what a phase does."""
    if splits.test or base:
        return ()
    return ("no test data: this phase is not measured; name test, or set test_share",)


def _cached(maker: Maker) -> tuple[str, ...]:
    return ("tokenised data: taken from the cache",) if maker.cache.hits else ()
