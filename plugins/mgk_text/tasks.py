"""The tasks: what is learnt from records, and which probes measure it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from attrs import frozen

from mgk_core.contract.bundle import Probe
from mgk_core.contract.errors import Problem
from mgk_text import probes
from mgk_text.cache import Learnt, TokenCache, tokenised
from mgk_text.dialogue_tasks import DialogueTask, PictureTask, PreferenceTask
from mgk_text.encode import Encoder, Pair
from mgk_text.items import of_entries, of_questions
from mgk_text.options import Distractors
from mgk_text.records import Entry, Question, Record, Text
from mgk_text.specs import (
    ChatSpec,
    DictionarySpec,
    ImageChatSpec,
    McqSpec,
    PlainTextSpec,
    PreferenceSpec,
    TextDataSpec,
)
from mgk_text.templates import DictionaryTemplate, McqTemplate


class Task(Protocol):
    """What a kind of data asks of a model."""

    @property
    def length(self) -> int | None:
        """Tokens of a packed row; None where one row is one example."""

    @property
    def overflow(self) -> str:
        """What happens to examples that are too long."""

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return what is learnt as examples, and the place where each came from."""

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return the probes of a split; other: the records of the other splits."""

    def problems(self, records: Sequence[Record]) -> list[Problem]:
        """Return what is missing in records for this task."""


@frozen
class TextTask:
    """Learn the text itself."""

    spec: PlainTextSpec

    @property
    def length(self) -> int | None:
        """Tokens of a packed row."""
        return self.spec.length

    @property
    def overflow(self) -> str:
        """What happens to texts that are too long."""
        return self.spec.overflow

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return each text, without a prompt."""
        texts = cast("Sequence[Text]", records)
        pairs: list[Pair] = [("", t.text) for t in texts]
        return Learnt(tokenised(encoder, pairs, cache), [t.place for t in texts])

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return the perplexity of the texts."""
        texts = [t.text for t in cast("Sequence[Text]", records)]
        return [
            probes.perplexity(
                encoder,
                texts,
                self.spec.probe_name,
                split=split,
                limit=self.spec.max_length,
            )
        ]

    def problems(self, records: Sequence[Record]) -> list[Problem]:
        """Return nothing: a text needs nothing else."""
        return []


@frozen
class DictionaryTask:
    """Learn one field of an entry, given another."""

    spec: DictionarySpec
    length: int | None = None

    @property
    def overflow(self) -> str:
        """What happens to examples that are too long."""
        return self.spec.overflow

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return every direction of each entry."""
        entries = cast("Sequence[Entry]", records)
        templates = [DictionaryTemplate(d) for d in self.spec.directions]
        pairs = [(t.ask(e), t.answer(e)) for e in entries for t in templates]
        places = [e.place for e in entries for _ in templates]
        return Learnt(tokenised(encoder, pairs, cache), places)

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return option log-likelihoods, and generated terms (test only)."""
        entries, others = (
            cast("Sequence[Entry]", records),
            cast("Sequence[Entry]", other),
        )
        spec, template = self.spec, DictionaryTemplate(self.spec.probe_direction)
        draws = Distractors.of(template, entries, others, spec.distractors, spec.seed)
        made = probes.options(
            of_entries(encoder, entries, draws), spec.probe_name, split, spec.metrics
        )
        if split == "test" and spec.generate:
            asked = probes.spread(entries, spec.generate)
            made += probes.terms(encoder, template, asked, spec)
        return made

    def problems(self, records: Sequence[Record]) -> list[Problem]:
        """Return nothing: the reader has asked for what the directions need."""
        return []


@frozen
class McqTask:
    """Answer a question."""

    spec: McqSpec
    length: int | None = None

    @property
    def template(self) -> McqTemplate:
        """The one template of training, scoring and generation."""
        return McqTemplate(self.spec.target, self.spec.show_options)

    @property
    def overflow(self) -> str:
        """What happens to examples that are too long."""
        return self.spec.overflow

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return each question with its answer."""
        questions = cast("Sequence[Question]", records)
        pairs = [(self.template.ask(q), self.template.answer(q)) for q in questions]
        return Learnt(tokenised(encoder, pairs, cache), [q.place for q in questions])

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return option log-likelihoods, and generated answers (test only)."""
        questions = cast("Sequence[Question]", records)
        template = self.template
        made = self.options(encoder, questions, self.spec.probe_name, split)
        if split == "test" and self.spec.generate:
            asked = probes.spread(questions, self.spec.generate)
            made += probes.answers(encoder, template, asked, self.spec)
        return made

    def options(
        self, encoder: Encoder, questions: Sequence[Question], name: str, split: str
    ) -> list[Probe]:
        """Return the probes of the options' log-likelihoods."""
        return probes.options(
            of_questions(encoder, questions, self.template),
            name,
            split,
            self.spec.metrics,
        )

    def items(
        self, questions: Sequence[Question]
    ) -> list[tuple[str, Sequence[str], int, str]]:
        """Return what is scored, as `Encoder.choices` takes it."""
        template = self.template
        return [
            (template.ask(q), template.options(q), q.answer, q.specialty)
            for q in questions
        ]

    def problems(self, records: Sequence[Record]) -> list[Problem]:
        """Return the training questions without a reasoning, if reasonings are learnt."""
        if self.spec.target != "reasoning":
            return []
        without = [q for q in cast("Sequence[Question]", records) if not q.reasoning]
        return [
            Problem(
                q.place,
                "target 'reasoning' needs a reasoning, and this question has none",
            )
            for q in without
        ]


def task_for(spec: TextDataSpec) -> Task:
    """Return the task of a spec."""
    if isinstance(spec, McqSpec):
        return McqTask(spec)
    if isinstance(spec, DictionarySpec):
        return DictionaryTask(spec)
    if isinstance(spec, PreferenceSpec):
        return PreferenceTask(spec)
    if isinstance(spec, ImageChatSpec):
        return PictureTask(spec)
    if isinstance(spec, ChatSpec):
        return DialogueTask(spec)
    assert isinstance(spec, PlainTextSpec)  # noqa: S101 - the plugin registers only these
    return TextTask(spec)
