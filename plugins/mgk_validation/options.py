"""Metrics over questions with options, scored by the log-likelihood of each option.

An option's score is its log-likelihood per token, so that a long option is not punished; the model
chooses the option with the highest. Three metrics come from one scoring of the same items:
``option_logprob``, the mean score of the right option (nats per token); ``option_margin``, the mean
of that score minus the best wrong option's; and ``option_accuracy``, the share where that is above 0.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

from attrs import define, evolve, field, frozen
from torch import nn

from mgk_core.contract.bundle import Bundle, Choice, OptionScores, Probe, Score
from mgk_core.contract.errors import InputError
from mgk_core.model.versions import version_of
from mgk_validation.calibration import calibration_error, confidence
from mgk_validation.losses import score


@frozen
class Scored:
    """One item: the index of the right option, and each option's log-likelihood: total, per token, per byte."""

    answer: int
    whole: tuple[float, ...]
    per_token: tuple[float, ...]
    per_byte: tuple[float, ...]

    @property
    def margin(self) -> float:
        """The right option's score minus the best wrong one's; the choice is right if it is > 0."""
        wrong = [s for i, s in enumerate(self.per_token) if i != self.answer]
        return self.per_token[self.answer] - max(wrong)

    def right(self, scores: Sequence[float]) -> float:
        """1 if the answer's score is above all others, otherwise 0 (a tie counts as wrong)."""
        return float(
            all(
                scores[self.answer] > s
                for i, s in enumerate(scores)
                if i != self.answer
            )
        )


def option_metric(bundle: Bundle, probe: Probe) -> Score:
    """Score the probe's items, or reuse the scoring of a sibling metric."""
    check_items(probe)
    items = _SEEN.setdefault(bundle.model, Cache()).scored(bundle, probe)
    if probe.metric == "option_calibration":
        return _calibration(probe, items)
    right = tuple(item.right(item.per_token) for item in items)
    own = tuple(item.per_token[item.answer] for item in items)
    margins = tuple(item.margin for item in items)
    chance = math.fsum(1 / len(item.per_token) for item in items) / len(items)
    extra = {
        "accuracy": _mean(right),
        "accuracy_stderr": _stderr(right),
        "accuracy_whole": _mean([item.right(item.whole) for item in items]),
        "accuracy_per_byte": _mean([item.right(item.per_byte) for item in items]),
        "logprob": _mean(own),
        "margin": _mean(margins),
        "chance": chance,
    }
    values = {
        "option_logprob": own,
        "option_margin": margins,
        "option_accuracy": right,
    }[probe.metric]
    return score(probe, _mean(values), _stderr(values), values, extra)


def _calibration(probe: Probe, items: Sequence[Scored]) -> Score:
    """Return the expected calibration error of the probabilities that an item's options have."""
    sure = [confidence(item.whole, item.answer) for item in items]
    error, stderr = calibration_error(sure)
    extra = {
        "confidence": _mean([one.probability for one in sure]),
        "accuracy": _mean([float(one.right) for one in sure]),
    }
    return evolve(score(probe, error, stderr, (0.0,) * len(sure), extra), per_item=())


@define(eq=False)
class Cache:
    """The last scoring of each set of items, for the other metrics of the same row.

    It is used once per probe, and only while no weight and no adapter's switch has changed: a probe
    that is scored a second time starts a new row.
    """

    kept: dict[int, tuple[tuple[int, ...], tuple[Scored, ...], set[str]]] = field(
        factory=dict
    )

    def scored(self, bundle: Bundle, probe: Probe) -> tuple[Scored, ...]:
        """Return the scored items of a probe."""
        key, state = hash(tuple(probe.items)), version_of(bundle.model)
        before, items, users = self.kept.get(key, ((), (), set()))
        if before != state or probe.name in users:
            items, users = score_items(bundle, probe), set()
        users.add(probe.name)
        self.kept[key] = (state, items, users)
        return items


_SEEN: weakref.WeakKeyDictionary[nn.Module, Cache] = weakref.WeakKeyDictionary()


def check_items(probe: Probe) -> None:
    """Raise `InputError` for the first item that is not a question with options."""
    for i, item in enumerate(probe.items):
        if (
            not isinstance(item, Choice)
            or len(item.options) < 2
            or not 0 <= item.answer < len(item.options)
        ):
            raise InputError(
                f"probe {probe.name!r}, item {i}: expected a Choice of two or more options with its answer"
            )


def score_items(bundle: Bundle, probe: Probe) -> tuple[Scored, ...]:
    """Score all items in one call."""
    found = bundle.score(probe.items)
    return tuple(
        _scored(item, scores) for item, scores in zip(probe.items, found, strict=True)
    )


def _scored(item: Choice, scores: OptionScores) -> Scored:
    tokens, nbytes = (
        tuple(max(n, 1) for n in lengths) for lengths in (scores.tokens, scores.bytes)
    )
    return Scored(
        item.answer,
        scores.logprob,
        tuple(s / n for s, n in zip(scores.logprob, tokens, strict=True)),
        tuple(s / n for s, n in zip(scores.logprob, nbytes, strict=True)),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _stderr(values: Sequence[float]) -> float:
    """Sample standard deviation / √n; NaN for n = 1."""
    n, mean = len(values), _mean(values)
    return (
        math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
        if n > 1
        else math.nan
    )
