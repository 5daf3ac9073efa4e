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
    """Score pairs, or single answers that are labelled good or bad.

    :raises InputError: items of another kind, or labelled answers of which all are good, or all bad
    """
    sizes = [_options_of(probe, i) for i in range(len(probe.items))]
    found = bundle.score(probe.items)
    if set(sizes) == {1}:
        return _labelled(probe, found)
    return _paired(probe, found)


def _options_of(probe: Probe, number: int) -> int:
    """Return how many options an item has: 2 of a pair, 1 of a labelled answer, the same of all."""
    item = probe.items[number]
    options = len(item.options) if isinstance(item, Choice) else 0
    right = (0, 1) if options == 2 else (0, -1)
    same = options == len(getattr(probe.items[0], "options", ()))
    if options not in {1, 2} or item.answer not in right or not same:
        raise InputError(
            f"probe {probe.name!r}, item {number}: expected a pair (a Choice of two options), or a"
            " labelled answer (a Choice of one option, its answer 0 or -1), as the items before"
        )
    return options


def _paired(probe: Probe, found: Sequence[OptionScores]) -> Score:
    """Value: the share of pairs whose chosen answer is likelier per token; a tie counts as wrong.

    extra: ``margin`` in nats per token and ``margin_whole`` in nats with their standard errors, and
    the mean log-likelihoods per token.
    """
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
    return _score(probe, right, _stderr(right), extra)


def _labelled(probe: Probe, found: Sequence[OptionScores]) -> Score:
    """Value: the share of all pairs of a good and a bad answer whose good one is likelier (AUC).

    A tie counts half. The standard error is DeLong's (1988), of good and bad answers both;
    ``per_item`` has the share of bad answers that each good one beats.
    """
    pairs = list(zip(probe.items, found, strict=True))
    good = [_per_token(scores, 0) for item, scores in pairs if item.answer == 0]
    bad = [_per_token(scores, 0) for item, scores in pairs if item.answer == -1]
    if not good or not bad:
        raise InputError(
            f"probe {probe.name!r}: expected good and bad answers, and all {len(pairs)} that are"
            f" scored are {'good' if good else 'bad'}; raise evaluate.limit, or give others"
        )
    beaten = tuple(_mean([_wins(g, b) for b in bad]) for g in good)
    losing = [_mean([_wins(g, b) for g in good]) for b in bad]
    error = math.hypot(_stderr(beaten), _stderr(losing))
    extra = {
        "margin": _mean(good) - _mean(bad),
        "margin_stderr": math.hypot(_stderr(good), _stderr(bad)),
        "logprob_good": _mean(good),
        "logprob_bad": _mean(bad),
    }
    return _score(probe, beaten, error, extra)


def _wins(good: float, bad: float) -> float:
    return float(good > bad) if good != bad else 0.5


def _score(
    probe: Probe, values: tuple[float, ...], stderr: float, extra: dict[str, float]
) -> Score:
    return Score(
        probe.name,
        METRIC,
        _mean(values),
        len(values),
        stderr,
        higher_is_better=True,
        chance=0.5,
        per_item=values,
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
