"""The metric ``preference``: how often the chosen answer is the likelier one.

An answer's score is its log-likelihood per token, so that length alone decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mgk_core.contract.bundle import Bundle, Choice, OptionScores, Probe, Score
from mgk_core.contract.errors import InputError

METRIC = "preference"


def evaluate(bundle: Bundle, probe: Probe) -> Score:
    """Score pairs: items are a `Choice` of two options with the chosen one's index as answer.

    value: share of pairs whose chosen answer is likelier per token (a tie counts as wrong).
    extra: ``margin`` in nats per token with its standard error, ``margin_whole`` in nats, and the
    mean log-likelihoods per token.
    """
    for i, item in enumerate(probe.items):
        if not isinstance(item, Choice) or len(item.options) != 2:
            raise InputError(
                f"probe {probe.name!r}, item {i}: expected a pair, a Choice of two options"
            )
    found = bundle.score(probe.items)
    items = list(zip(probe.items, found, strict=True))
    chosen = [_per_token(scores, item.answer) for item, scores in items]
    rejected = [_per_token(scores, 1 - item.answer) for item, scores in items]
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    whole = [s.logprob[i.answer] - s.logprob[1 - i.answer] for i, s in items]
    right = tuple(float(margin > 0) for margin in margins)
    extra = {
        "margin": _mean(margins),
        "margin_stderr": _stderr(margins),
        "margin_whole": _mean(whole),
        "margin_whole_stderr": _stderr(whole),
        "logprob_chosen": _mean(chosen),
        "logprob_rejected": _mean(rejected),
    }
    return Score(
        probe.name,
        METRIC,
        _mean(right),
        len(right),
        _stderr(right),
        higher_is_better=True,
        chance=0.5,
        per_item=right,
        extra=extra,
    )


def _per_token(scores: OptionScores, option: int) -> float:
    return scores.logprob[option] / max(scores.tokens[option], 1)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _stderr(values: Sequence[float]) -> float:
    """Sample standard deviation / √n; NaN for n = 1."""
    n, mean = len(values), _mean(values)
    if n < 2:
        return math.nan
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
