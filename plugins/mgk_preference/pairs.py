"""Losses on pairs: DPO, ORPO and SimPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from attrs import define, field, frozen
from torch import Tensor
from torch.nn.functional import logsigmoid

from mgk_core.contract.bundle import (
    Batch,
    HasPairs,
    LanguageBundle,
    PredictsTokens,
    PreferencePair,
    Tokens,
)
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_preference import formulas
from mgk_preference.formulas import Answers, Ratios
from mgk_preference.reference import Reference, summed
from mgk_preference.specs import DpoSpec, OrpoSpec, PairwiseSpec, SimpoSpec

IGNORED = -100


@frozen(eq=False)
class PairBatch:
    """A micro-batch of n pairs.

    tokens: the bundle's batch of all chosen answers, then all rejected ones. lengths: (2n,) learned
    tokens of each. reference: (2n,) their log-likelihoods under the base, None where the loss needs
    none. answer: (N,) which of the predicted tokens are part of an answer, None: all.
    """

    tokens: Batch
    lengths: Tensor
    reference: Tensor | None = None
    answer: Tensor | None = None

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.lengths) // 2


@define(eq=False)
class Pairwise(Objective):
    """What the losses on pairs share: batches, log-likelihoods, figures."""

    ctx: PhaseContext
    spec: PairwiseSpec
    pairs: Sequence[PreferencePair] = field(init=False, repr=False)
    held_out: Sequence[PreferencePair] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        self.pairs = cast("HasPairs", self.ctx.data.train).pairs
        held_out = self.ctx.data.held_out
        self.held_out = held_out.pairs if isinstance(held_out, HasPairs) else ()

    @property
    def unit(self) -> str:
        """What is counted."""
        return "pairs"

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """Collate pairs."""
        return self._batch(self.pairs, rows)

    def dev(self) -> Sequence[PairBatch]:
        """Return the held-out pairs, as many in a batch as in training."""
        size = self.ctx.phase.train.micro
        rows = range(len(self.held_out))
        return [
            self._batch(self.held_out, rows[i : i + size])
            for i in range(0, len(rows), size)
        ]

    def _batch(self, pairs: Sequence[PreferencePair], rows: Sequence[int]) -> PairBatch:
        examples = answers_of([pairs[row] for row in rows])
        return PairBatch(self._pack(examples), self._lengths(examples))

    def _pack(self, examples: Sequence[Tokens]) -> Batch:
        return cast("LanguageBundle", self.ctx.bundle).pack(examples)

    def _lengths(self, examples: Sequence[Tokens]) -> Tensor:
        lengths = [float(learned(example)) for example in examples]
        return torch.tensor(lengths, device=self.ctx.device)

    def _logprobs(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return (log-likelihood of each predicted token, its example), (N,) each."""
        found = cast("PredictsTokens", self.ctx.bundle).predictions(
            batch.tokens, embedding_noise=self.spec.neftune_noise_alpha
        )
        return found.logprobs(), found.example

    def _answers(self, batch: PairBatch) -> Answers:
        """Return the summed log-likelihoods of both answers of each pair."""
        values, example = self._logprobs(batch)
        return split(summed(values, example, 2 * batch.pairs), batch.lengths)


@define(eq=False)
class Dpo(Pairwise):
    """−log σ(β · (log-ratio of chosen − log-ratio of rejected)), or one of its variants."""

    spec: DpoSpec
    reference: Reference = field(init=False)
    reference_dev: Reference = field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.reference = _reference(self.ctx, "reference", self.pairs)
        self.reference_dev = _reference(self.ctx, "reference-dev", self.held_out)

    def prepare(self) -> None:
        """Run the base over all pairs, once."""
        self.reference.prepare()
        self.reference_dev.prepare()

    def _batch(self, pairs: Sequence[PreferencePair], rows: Sequence[int]) -> PairBatch:
        made = super()._batch(pairs, rows)
        reference = self.reference if pairs is self.pairs else self.reference_dev
        places = [2 * row for row in rows] + [2 * row + 1 for row in rows]
        return PairBatch(made.tokens, made.lengths, reference.of(places))

    def loss(self, batch: PairBatch) -> ObjectiveLoss:
        """Return the loss of each pair, summed."""
        assert batch.reference is not None  # noqa: S101 - made above
        spec, answers = self.spec, self._answers(batch)
        reference = split(batch.reference, batch.lengths)
        ratios = Ratios(answers, reference, spec.beta, spec.label_smoothing)
        losses = [
            weight * formulas.DPO[name](ratios) for name, weight in spec.losses.items()
        ]
        total = torch.stack(losses).sum()
        rewards = figures(spec.beta * ratios.chosen, spec.beta * ratios.rejected)
        return _result(total, batch, rewards | logps(answers.chosen, answers.rejected))


@define(eq=False)
class Simpo(Pairwise):
    """−log σ(β · (mean of chosen − mean of rejected) − γ), and the likelihood where asked for."""

    spec: SimpoSpec

    def loss(self, batch: PairBatch) -> ObjectiveLoss:
        """Return the loss of each pair, summed; the likelihood's part is the batch's mean per token."""
        spec, answers = self.spec, self._answers(batch)
        losses = formulas.simpo(
            answers, spec.beta, spec.simpo_gamma, spec.label_smoothing
        )
        total = losses.sum()
        if spec.cpo_alpha:
            nll = -answers.chosen.sum() / answers.chosen_tokens.sum()
            total = total + spec.cpo_alpha * nll * batch.pairs
        chosen, rejected = answers.chosen_mean, answers.rejected_mean
        rewards = figures(spec.beta * chosen, spec.beta * rejected)
        return _result(total, batch, rewards | logps(chosen, rejected))


@define(eq=False)
class Orpo(Pairwise):
    """Likelihood of prompt and chosen answer, minus β · log σ(log odds ratio).

    As in TRL and in the authors' code, the likelihood is that of the whole chosen text.
    """

    spec: OrpoSpec

    def _batch(self, pairs: Sequence[PreferencePair], rows: Sequence[int]) -> PairBatch:
        examples = answers_of([pairs[row] for row in rows])
        whole = [
            Tokens(example.ids, example.ids) if i < len(rows) else example
            for i, example in enumerate(examples)
        ]
        # Which of the predicted tokens are an answer's: a first token is predicted by nothing.
        marks: list[bool] = []
        for example, shown in zip(examples, whole, strict=True):
            asked = zip(example.labels[1:], shown.labels[1:], strict=True)
            marks += [own != IGNORED for own, label in asked if label != IGNORED]
        answer = torch.tensor(marks, device=self.ctx.device)
        return PairBatch(self._pack(whole), self._lengths(examples), answer=answer)

    def loss(self, batch: PairBatch) -> ObjectiveLoss:
        """Return the loss of each pair, summed; the likelihood's part is the batch's mean per token."""
        assert batch.answer is not None  # noqa: S101 - made above
        values, example = self._logprobs(batch)
        of_chosen = example < batch.pairs
        nll = -(values * of_chosen).sum() / of_chosen.sum()
        sums = summed(values * batch.answer, example, 2 * batch.pairs)
        answers = split(sums, batch.lengths)
        log_odds = formulas.log_odds_ratio(answers)
        preference = -self.spec.beta * logsigmoid(log_odds).sum()
        chosen, rejected = answers.chosen_mean, answers.rejected_mean
        rewards = figures(self.spec.beta * chosen, self.spec.beta * rejected)
        more = {"log_odds_chosen": log_odds.detach(), "nll_loss": nll.detach()[None]}
        found = rewards | logps(chosen, rejected) | more
        return _result(preference + nll * batch.pairs, batch, found)


def _reference(
    ctx: PhaseContext, name: str, pairs: Sequence[PreferencePair]
) -> Reference:
    """Return the reference of pairs; row i has the examples 2i (chosen) and 2i + 1 (rejected)."""
    examples: list[Tokens] = []
    for pair in pairs:
        examples += (pair.chosen, pair.rejected)
    return Reference(ctx, name, examples)


def answers_of(pairs: Sequence[PreferencePair]) -> list[Tokens]:
    """Return all chosen answers, then all rejected ones."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def learned(example: Tokens) -> int:
    """Return how many tokens of an example are learned; its first has nothing to be predicted from."""
    return sum(label != IGNORED for label in example.labels[1:])


def split(sums: Tensor, lengths: Tensor) -> Answers:
    """Return chosen and rejected halves. sums, lengths: (2n,)."""
    chosen, rejected = sums.chunk(2)
    return Answers(chosen, rejected, *lengths.chunk(2))


def figures(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Return what is logged of the rewards of each pair, under TRL's names."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "rewards/margins": chosen - rejected,
    }


def logps(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Return what is logged of the log-likelihoods of each pair."""
    return {"logps/chosen": chosen.detach(), "logps/rejected": rejected.detach()}


def _result(total: Tensor, batch: PairBatch, found: dict[str, Any]) -> ObjectiveLoss:
    count = torch.full((), float(batch.pairs), device=total.device)
    return ObjectiveLoss(total, count, found)
