"""The training set: rows of examples, batched by the base's own packing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from attrs import define, field

from mgk_core.contract.bundle import (
    Batch,
    Choice,
    LabelledAnswer,
    LanguageBundle,
    Pictured,
    PreferencePair,
    Tokens,
)
from mgk_text.packing import Row


@define(eq=False)
class TokenRows:
    """Rows of examples; a batch holds every example of the rows asked for."""

    bundle: LanguageBundle = field(repr=False)
    rows: tuple[Row, ...] = field(repr=False)
    digest: str

    @classmethod
    def of(cls, bundle: LanguageBundle, rows: Sequence[Row]) -> TokenRows:
        """Return a training set with the digest of all its tokens."""
        return cls(bundle, tuple(rows), digest([e for row in rows for e in row]))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows, in the order given."""
        return self.bundle.pack([example for row in rows for example in self.rows[row]])


@define(eq=False)
class QuestionRows(TokenRows):
    """Rows of questions, with the options of each: what a contrast between them needs."""

    choices: tuple[Choice, ...] = field(default=(), repr=False)

    @classmethod
    def with_choices(cls, rows: TokenRows, choices: Sequence[Choice]) -> QuestionRows:
        """Return the same rows with their questions; the digest covers the wrong options too."""
        state = hashlib.blake2b(rows.digest.encode(), digest_size=32)
        for choice in choices:
            state.update(
                json.dumps([choice.prompt, choice.options, choice.answer]).encode()
            )
        return cls(rows.bundle, rows.rows, state.hexdigest(), tuple(choices))


@define(eq=False)
class PreferenceRows(TokenRows):
    """Rows of chosen answers, with the rejected ones beside them: what preference losses need.

    `batch` has the chosen answers only: the likelihood of both would teach what is rejected.
    """

    pairs: tuple[PreferencePair, ...] = field(default=(), repr=False)

    @classmethod
    def with_rejected(
        cls, rows: TokenRows, rejected: Sequence[Tokens]
    ) -> PreferenceRows:
        """Return the same rows with their pairs; the digest covers the rejected answers too."""
        chosen = [example for row in rows.rows for example in row]
        pairs = [PreferencePair(a, b) for a, b in zip(chosen, rejected, strict=True)]
        state = hashlib.blake2b(rows.digest.encode(), digest_size=32)
        state.update(digest(rejected).encode())
        return cls(rows.bundle, rows.rows, state.hexdigest(), tuple(pairs))


@define(eq=False)
class LabelledRows(TokenRows):
    """Rows of one answer each, labelled as wanted or not.

    In `batch` unwanted answers have no labels: their likelihood must never be learned.
    """

    answers: tuple[LabelledAnswer, ...] = field(default=(), repr=False)

    @classmethod
    def of_answers(
        cls, bundle: LanguageBundle, answers: Sequence[LabelledAnswer]
    ) -> LabelledRows:
        """Return a training set; the digest covers the labels of unwanted answers too."""
        rows = tuple((_shown(answer),) for answer in answers)
        state = hashlib.blake2b(digest_size=32)
        state.update(digest([answer.answer for answer in answers]).encode())
        state.update(bytes(answer.desirable for answer in answers))
        return cls(bundle, rows, state.hexdigest(), tuple(answers))


def _shown(answer: LabelledAnswer) -> Tokens:
    example = answer.answer
    if answer.desirable:
        return example
    return Tokens(example.ids, (-100,) * len(example.ids))


def digest(examples: Sequence[Tokens]) -> str:
    """Digest of examples: ids and what of them is learnt."""
    state = hashlib.blake2b(digest_size=32)
    for example in examples:
        content: list[Any] = [example.ids, example.labels]
        if isinstance(example, Pictured):
            content.append([picture.digest for picture in example.pictures])
        state.update(json.dumps(content).encode())
    return state.hexdigest()
