"""Two scores of one probe: how much it changed, and how much of that may be noise."""

from __future__ import annotations

import math
from typing import Any

from attrs import frozen

from mgk_core.contract.bundle import Score
from mgk_core.contract.comparison import paired


@frozen
class Change:
    """From one score to another, in the metric's unit; ``gain`` is positive if it improved."""

    before: Score
    after: Score

    @property
    def gain(self) -> float:
        """How much the score improved."""
        return self.after.better_by(self.before)

    @property
    def stderr(self) -> float:
        """Standard error of the gain: over the items' own changes if both scores have the same items.

        A perplexity's items are log-likelihoods; there d exp(x) = exp(x) dx. Without items the two
        scores count as independent. NaN if it is unknown.
        """
        one, two = self.before.per_item, self.after.per_item
        if not one or len(one) != len(two):
            return math.hypot(self.before.stderr, self.after.stderr)
        n = len(one)
        if n < 2:
            return math.nan
        changes = [b - a for a, b in zip(one, two, strict=True)]
        mean = math.fsum(changes) / n
        error = math.sqrt(math.fsum((c - mean) ** 2 for c in changes) / (n - 1) / n)
        unit = (
            (self.before.value + self.after.value) / 2
            if self.after.metric == "perplexity"
            else 1.0
        )
        return error * unit

    def noise(self, stderrs: float) -> float:
        """Return the gain or drop that counts as noise: ``stderrs`` standard errors, 0 where unknown."""
        room = stderrs * self.stderr
        return room if math.isfinite(room) else 0.0

    def evidence(self, **more: Any) -> dict[str, Any]:
        """Return the figures behind a refusal."""
        test = paired(self.before, self.after)
        known = {
            "before": self.before.value,
            "after": self.after.value,
            "gain": self.gain,
            "n": self.after.n,
        }
        tested = {} if test is None else {"p": test.p, "test": test.test}
        return {**known, "stderr": self.stderr, **tested, **more}

    def __str__(self) -> str:
        return f"{self.after.probe} ({self.after.metric}) {self.before.value:.4g} → {self.after.value:.4g}"
