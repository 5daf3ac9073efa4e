"""Items of probes that are encoded only when they are scored: a limit then limits the work too."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from attrs import define, evolve, field, frozen

from mgk_core.contract.bundle import Choice
from mgk_text.encode import Encoder
from mgk_text.options import Distractors
from mgk_text.records import Entry, Question
from mgk_text.templates import McqTemplate

_COUNTED = 64  # items whose options are counted for the score of a guess

Asked = tuple[str, Sequence[str], int, str]
"""(prompt, options, index of the right one, group), as `Encoder.choices` takes it."""


@define(eq=False)
class LazyChoices(Sequence[Choice]):
    """Questions with options, encoded together when one of them is first asked for.

    ask: what question number i asks. size: characters of its prompt. A slice is another such sequence, and the same slice the same
    one, so that probes that share their items encode them once.
    """

    encoder: Encoder = field(repr=False)
    numbers: range
    ask: Callable[[int], Asked] = field(repr=False)
    size: Callable[[int], int] = field(repr=False)
    _made: list[Choice] | None = field(default=None, init=False, repr=False)
    _slices: dict[range, LazyChoices] = field(factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Choice: ...
    @overload
    def __getitem__(self, place: slice) -> LazyChoices: ...
    def __getitem__(self, place: int | slice) -> Choice | LazyChoices:
        """Return one item, or the sequence of some of them."""
        if isinstance(place, int):
            return self._all()[place]
        numbers = self.numbers[place]
        if numbers == self.numbers:
            return self
        if numbers not in self._slices:
            self._slices[numbers] = evolve(self, numbers=numbers)
        return self._slices[numbers]

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._all())

    def longest(self, count: int) -> list[Choice]:
        """Return the items with the longest prompts: what a limit on lengths meets first."""
        numbers = heapq.nlargest(count, self.numbers, key=self.size)
        return self.encoder.choices([self.ask(i) for i in numbers])

    def _all(self) -> list[Choice]:
        if self._made is None:
            self._made = self.encoder.choices([self.ask(i) for i in self.numbers])
        return self._made


@frozen
class ChoiceSet:
    """What several metrics are taken of. chance: of a guess. digest: of everything that decides items."""

    items: Sequence[Choice]
    chance: float
    digest: str


def of_questions(
    encoder: Encoder, questions: Sequence[Question], template: McqTemplate
) -> ChoiceSet:
    """Return the questions of an exam."""

    def ask(i: int) -> Asked:
        q = questions[i]
        return template.ask(q), template.options(q), q.answer, q.specialty

    parts = [[*ask(i)] for i in range(len(questions))]
    chance = math.fsum(1 / len(q.options) for q in questions) / len(questions)
    items = LazyChoices(
        encoder, range(len(questions)), ask, lambda i: len(template.ask(questions[i]))
    )
    return ChoiceSet(items, chance, _digest([encoder.conversation.digest, *parts]))


def of_entries(
    encoder: Encoder, entries: Sequence[Entry], draws: Distractors
) -> ChoiceSet:
    """Return one question for each entry, its wrong options drawn from other entries."""
    template = draws.same.template

    def ask(i: int) -> Asked:
        entry = entries[i]
        drawn = draws.draw(entry)
        return template.ask(entry), drawn.options, drawn.right, entry.specialty

    counted = entries[:_COUNTED]
    chance = math.fsum(1 / len(draws.draw(e).options) for e in counted) / len(counted)
    pools = [_fields(e) for pool in (draws.same, draws.other) for e in pool.entries]
    parts = [
        template.direction,
        draws.count,
        draws.seed,
        [_fields(e) for e in entries],
        pools,
    ]
    items = LazyChoices(
        encoder, range(len(entries)), ask, lambda i: len(template.ask(entries[i]))
    )
    return ChoiceSet(items, chance, _digest([encoder.conversation.digest, *parts]))


def of_choices(choices: Sequence[Choice]) -> ChoiceSet:
    """Return choices that are encoded already."""
    chance = math.fsum(1 / len(c.options) for c in choices) / len(choices)
    content = [[c.prompt, c.options, c.answer] for c in choices]
    return ChoiceSet(tuple(choices), chance, _digest(content))


def _fields(entry: Entry) -> list[str]:
    return [entry.ko, entry.en, entry.definition, entry.specialty]


def _digest(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
