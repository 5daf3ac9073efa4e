"""Expected calibration error: how far a model's confidence is from how often it is right.

Guo et al. 2017 (arXiv 1706.04599), eq. 3: ECE = Σ_b n_b / N · |accuracy_b − confidence_b| over ten bins
of equal width. An item's confidence is the probability of its likeliest option among all options,
softmax over their whole log-likelihoods.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from attrs import frozen

BINS = 10
DRAWS = 200
"""Bootstrap samples for the standard error."""


@frozen
class Confidence:
    """The probability of an item's likeliest option, and whether that is the right one."""

    probability: float
    right: bool


def confidence(logprobs: Sequence[float], answer: int) -> Confidence:
    """Return how sure a model is of the option it chooses. logprobs: natural, one an option."""
    scores = np.asarray(logprobs, dtype=np.float64)
    weights = np.exp(scores - scores.max())
    chosen = int(weights.argmax())
    return Confidence(float(weights[chosen] / weights.sum()), chosen == answer)


def calibration_error(items: Sequence[Confidence]) -> tuple[float, float]:
    """Return the error, 0 to 1, and its standard error by bootstrap over items."""
    sure = np.array([item.probability for item in items])
    right = np.array([float(item.right) for item in items])
    draw = np.random.default_rng(0)
    picks = draw.integers(0, len(items), size=(DRAWS, len(items)))
    draws = [_error(sure[pick], right[pick]) for pick in picks]
    return _error(sure, right), float(np.std(draws, ddof=1))


def _error(sure: np.ndarray, right: np.ndarray) -> float:
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.zeros(BINS)
    np.add.at(gaps, bins, right - sure)
    return float(np.abs(gaps).sum() / len(sure))
