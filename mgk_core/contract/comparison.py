"""Two scores of one probe compared item by item, and the interval of one score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import frozen

from mgk_core.contract.bundle import Score


@frozen
class Paired:
    """A difference of two scores on the same items: mean per item, standard error, p-value."""

    difference: float
    stderr: float
    p: float
    n: int
    test: str


def paired(
    before: Score, after: Score, *, draws: int = 2000, seed: int = 0
) -> Paired | None:
    """Compare two scores of one probe item by item; positive is better. None without items.

    Right-or-wrong items: McNemar's exact test. Otherwise: paired bootstrap, two-sided.
    """
    if not before.per_item or len(before.per_item) != len(after.per_item):
        return None
    sign = 1.0 if after.higher_is_better else -1.0
    differences = [
        sign * (b - a) for a, b in zip(before.per_item, after.per_item, strict=True)
    ]
    n = len(differences)
    mean = sum(differences) / n
    stderr = (
        math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
        if n > 1
        else math.nan
    )
    if set(before.per_item) | set(after.per_item) <= {0.0, 1.0}:
        return Paired(mean, stderr, _mcnemar(differences), n, "McNemar exact")
    return Paired(
        mean, stderr, _bootstrap(differences, draws, seed), n, "paired bootstrap"
    )


@frozen
class Change:
    """One probe from one row to another, in its metric's unit. change: positive is better."""

    before: float
    after: float
    change: float
    stderr: float
    p: float
    test: str


def change(before: Score, after: Score) -> Change:
    """Compare two rows of one probe: paired by item where both have the items, else a z-test."""
    gained, test = after.better_by(before), paired(before, after)
    if test is None:
        stderr = math.hypot(before.stderr, after.stderr)
        p = normal_p(gained, stderr)
        return Change(before.value, after.value, gained, stderr, p, "unpaired z")
    unit = item_unit(after.metric, before.value, after.value)
    stderr, p, name = test.stderr * unit, test.p, test.test
    if unit != 1.0:
        # A perplexity weighs items by their tokens, the paired test does not; n items of one sign
        # come by chance as often as 2^(1−n).
        p, name = max(normal_p(gained, stderr), 2.0 ** (1 - test.n)), "paired z"
    return Change(before.value, after.value, gained, stderr, p, name)


def item_unit(metric: str, before: float, after: float) -> float:
    """Return what a difference between items is multiplied by to be one between scores.

    The items of a perplexity are log-likelihoods: d exp(x) = exp(x) dx.
    """
    return (before + after) / 2 if metric == "perplexity" else 1.0


def normal_p(difference: float, stderr: float) -> float:
    """Two-sided p of a normally distributed difference; 1 where its error is not known."""
    if not math.isfinite(stderr) or difference == 0:
        return 1.0
    return math.erfc(abs(difference) / stderr / math.sqrt(2)) if stderr > 0 else 0.0


def _mcnemar(differences: Sequence[float]) -> float:
    """Two-sided exact binomial test on the items that changed."""
    won = sum(d > 0 for d in differences)
    lost = sum(d < 0 for d in differences)
    n, k = won + lost, min(won, lost)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2.0 * float(tail))


def _bootstrap(differences: Sequence[float], draws: int, seed: int) -> float:
    """Two-sided p of a mean of zero, by resampling items.

    Never less than 2^(1−n), the most that n items can show: with all signs free, n of one sign come as often as that.
    """
    values = np.asarray(differences)
    picks = np.random.default_rng(seed).integers(
        0, len(values), size=(draws, len(values))
    )
    below = float((values[picks].sum(axis=1) <= 0).mean())
    return max(1 / draws, 2.0 ** (1 - len(values)), min(1.0, 2 * min(below, 1 - below)))


def interval(score: Score, *, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a mean: Wilson's (1927) for right-or-wrong items, else mean ± z standard errors."""
    p, n = score.value, score.n
    if not score.per_item or not set(score.per_item) <= {0.0, 1.0}:
        return p - z * score.stderr, p + z * score.stderr
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


__all__ = ["Paired", "interval", "paired"]
