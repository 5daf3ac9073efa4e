"""KTO: answers that are labelled good or bad, without a counterpart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from attrs import define, field, frozen
from torch import Tensor

from mgk_core.contract.bundle import (
    Batch,
    HasLabelledAnswers,
    HasPairs,
    LabelledAnswer,
    LanguageBundle,
    PredictsTokens,
    Tokens,
)
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_preference import formulas
from mgk_preference.pairs import IGNORED
from mgk_preference.reference import Reference, summed
from mgk_preference.specs import KtoSpec


@frozen(eq=False)
class AnswerBatch:
    """A micro-batch of n answers.

    tokens: the bundle's batch. desirable: (n,) bool. reference: (n,) log-likelihoods under the base.
    mismatched, mismatched_reference: the same of each prompt with another prompt's answer, by which
    the divergence from the base is estimated; None where the loss needs none.
    """

    tokens: Batch
    desirable: Tensor
    reference: Tensor
    mismatched: Batch | None = None
    mismatched_reference: Tensor | None = None


@define(eq=False)
class AnswerSet:
    """Answers of one split, with the prompt of each before the answer of the one before it."""

    ctx: PhaseContext
    name: str
    rows: Sequence[Sequence[LabelledAnswer]] = field(repr=False)
    estimates: bool
    answers: list[LabelledAnswer] = field(init=False, repr=False)
    starts: list[int] = field(init=False, repr=False)
    mismatched: list[Tokens] = field(init=False, repr=False)
    reference: Reference = field(init=False)
    mismatched_reference: Reference = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.answers, self.starts = [], []
        for row in self.rows:
            self.starts.append(len(self.answers))
            self.answers += row
        examples = [answer.answer for answer in self.answers]
        self.mismatched = []
        if self.estimates:
            # Any fixed other answer does; a rotation gives each of them once, as in TRL.
            pairs = zip(examples, examples[-1:] + examples[:-1], strict=True)
            self.mismatched = [mismatch(own, other) for own, other in pairs]
        self.reference = Reference(self.ctx, self.name, examples)
        name = f"{self.name}-mismatched"
        self.mismatched_reference = Reference(self.ctx, name, self.mismatched)

    def prepare(self) -> None:
        """Run the base over all answers, once."""
        self.reference.prepare()
        self.mismatched_reference.prepare()

    def batch(self, rows: Sequence[int]) -> AnswerBatch:
        """Collate rows."""
        places: list[int] = []
        for row in rows:
            start = self.starts[row]
            places += range(start, start + len(self.rows[row]))
        pack = cast("LanguageBundle", self.ctx.bundle).pack
        answers = [self.answers[i] for i in places]
        labels = [answer.desirable for answer in answers]
        made = AnswerBatch(
            pack([answer.answer for answer in answers]),
            torch.tensor(labels, device=self.ctx.device),
            self.reference.of(places),
        )
        if not self.estimates:
            return made
        return AnswerBatch(
            made.tokens,
            made.desirable,
            made.reference,
            pack([self.mismatched[i] for i in places]),
            self.mismatched_reference.of(places),
        )


@define(eq=False)
class Kto(Objective):
    """1 − σ(β · (log-ratio − divergence)) of good answers, and the reverse of bad ones.

    The divergence is estimated on the micro-batch, as TRL does on each device's batch.
    """

    ctx: PhaseContext
    spec: KtoSpec
    train: AnswerSet = field(init=False)
    held_out: AnswerSet = field(init=False)

    def __attrs_post_init__(self) -> None:
        data, estimates = self.ctx.data, self.spec.loss_type == "kto"
        assert data is not None  # noqa: S101 - the runner loads data first
        self.train = AnswerSet(self.ctx, "reference", rows_of(data.train), estimates)
        held_out = rows_of(data.held_out)
        self.held_out = AnswerSet(self.ctx, "reference-dev", held_out, estimates)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "answers"

    def prepare(self) -> None:
        """Run the base over all answers, once."""
        self.train.prepare()
        self.held_out.prepare()

    def batch(self, rows: Sequence[int]) -> AnswerBatch:
        """Collate labelled answers."""
        return self.train.batch(rows)

    def dev(self) -> Sequence[AnswerBatch]:
        """Return the held-out answers, as many in a batch as in training."""
        size, count = self.ctx.phase.train.micro, len(self.held_out.rows)
        starts = range(0, count, size)
        return [self.held_out.batch(range(i, min(i + size, count))) for i in starts]

    def loss(self, batch: AnswerBatch) -> ObjectiveLoss:
        """Return the weighted loss of each answer, summed."""
        spec, good = self.spec, batch.desirable
        found = self._sums(batch.tokens, len(good), spec.neftune_noise_alpha)
        ratio, divergence = found - batch.reference, self._divergence(batch)
        losses = formulas.kto(ratio, good, divergence, spec.beta)
        weights = torch.where(good, spec.desirable_weight, spec.undesirable_weight)
        rewards = spec.beta * ratio.detach()
        count = torch.full((), float(len(good)), device=losses.device)
        figures = {
            "rewards/chosen": rewards[good],
            "rewards/rejected": rewards[~good],
            "logps/chosen": found.detach()[good],
            "logps/rejected": found.detach()[~good],
            "kl": divergence[None],
        }
        return ObjectiveLoss((losses * weights).sum(), count, figures)

    def _divergence(self, batch: AnswerBatch) -> Tensor:
        """Return the estimate of KL(model ‖ base), 0-dim, at least 0, without a gradient."""
        if batch.mismatched is None:
            return torch.zeros((), device=batch.reference.device)
        assert batch.mismatched_reference is not None  # noqa: S101 - made together
        with torch.no_grad():
            found = self._sums(batch.mismatched, len(batch.desirable), 0.0)
        return (found - batch.mismatched_reference).mean().clamp(min=0)

    def _sums(self, tokens: Batch, answers: int, noise: float) -> Tensor:
        predicts = cast("PredictsTokens", self.ctx.bundle)
        found = predicts.predictions(tokens, embedding_noise=noise)
        return summed(found.logprobs(), found.example, answers)


def rows_of(train: Any) -> list[list[LabelledAnswer]]:
    """Return the labelled answers of each row of a training set; of a pair: a good and a bad one."""
    if isinstance(train, HasLabelledAnswers):
        return [[answer] for answer in train.answers]
    rows: list[list[LabelledAnswer]] = []
    if isinstance(train, HasPairs):
        for pair in train.pairs:
            good = LabelledAnswer(pair.chosen, desirable=True)
            rows.append([good, LabelledAnswer(pair.rejected, desirable=False)])
    return rows


def mismatch(own: Tokens, other: Tokens) -> Tokens:
    """Return the prompt of one example with the answer of another."""
    start, answer = _answer(own), _answer(other)
    ids = own.ids[:start] + other.ids[answer:]
    return Tokens(ids, (IGNORED,) * start + other.labels[answer:])


def _answer(example: Tokens) -> int:
    """Return where an example's answer begins."""
    return next(i for i, label in enumerate(example.labels) if label != IGNORED)
