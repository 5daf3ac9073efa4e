"""The retention matrix and what is read off it. Pure functions, no torch.

Notation: rows i = 0 … P (row 0 is the untouched base, row i stands after phase i−1 of the
pipeline), columns are probes. A score is turned so that more is better before it is used here.
Definitions: BWT as Lopez-Paz & Ranzato 2017 (arXiv 1706.08840); forgetting as Chaudhry et al.
2018 (arXiv 1801.10112), with the maximum taken over the rows from the teaching phase on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from attrs import frozen

from mgk_core.contract.bundle import Score

FORGETTING = "maximum over rows from the teaching phase to the one before last, minus the last row"


@frozen
class Retention:
    """R as raw numbers. taught[j]: row after which probe j has been taught, None for the base's."""

    probes: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    higher_is_better: tuple[bool, ...]
    taught: tuple[int | None, ...]

    def at(self, row: int, probe: str) -> float | None:
        """Return R[row, probe], turned so that more is better."""
        j = self.probes.index(probe)
        value = self.values[row][j]
        return None if value is None else (value if self.higher_is_better[j] else -value)


def bwt(r: Retention) -> float | None:
    """Mean over probes taught before the last row of R[last, j] − R[j, j]; negative is forgetting."""
    changes = [c for c in (_since_taught(r, p) for p in _earlier(r)) if c is not None]
    return sum(changes) / len(changes) if changes else None


def forgetting(r: Retention) -> float | None:
    """Mean over earlier probes of (best score since taught, last row excluded) − last score."""
    losses = []
    for probe in _earlier(r):
        first = r.taught[r.probes.index(probe)]
        assert first is not None  # noqa: S101 - _earlier leaves the base's probes out
        past = [v for i in range(first, len(r.rows) - 1) if (v := r.at(i, probe)) is not None]
        last = r.at(-1, probe)
        if past and last is not None:
            losses.append(max(past) - last)
    return sum(losses) / len(losses) if losses else None


def forward_transfer(r: Retention) -> float | None:
    """Mean over probes of R[just before taught, j] − R[0, j], for phases after the first."""
    gains = []
    for probe, first in zip(r.probes, r.taught, strict=True):
        if first is None or first < 2:
            continue
        before, zero = r.at(first - 1, probe), r.at(0, probe)
        if before is not None and zero is not None:
            gains.append(before - zero)
    return sum(gains) / len(gains) if gains else None


def plasticity(r: Retention) -> float | None:
    """Mean over taught probes of R[j, j] − R[0, j]: what each phase gained when it was taught."""
    gains = [g for p in r.probes if (g := gain(r, p)) is not None]
    return sum(gains) / len(gains) if gains else None


def gain(r: Retention, probe: str) -> float | None:
    """R[j, j] − R[0, j] of one probe."""
    first = r.taught[r.probes.index(probe)]
    if first is None or first >= len(r.rows):
        return None
    taught, zero = r.at(first, probe), r.at(0, probe)
    return None if taught is None or zero is None else taught - zero


def gain_kept(r: Retention, probe: str) -> float | None:
    """(R[last, j] − R[0, j]) / (R[j, j] − R[0, j]): 1 is all kept, 0 all lost. None without a gain."""
    gained, last, zero = gain(r, probe), r.at(-1, probe), r.at(0, probe)
    if gained is None or gained <= 0 or last is None or zero is None:
        return None
    return (last - zero) / gained


def base_drift(r: Retention) -> dict[str, float]:
    """Return R[last, j] − R[0, j] of the base's own probes; negative is loss."""
    drift = {}
    for probe, first in zip(r.probes, r.taught, strict=True):
        last, zero = r.at(-1, probe), r.at(0, probe)
        if first is None and last is not None and zero is not None:
            drift[probe] = last - zero
    return drift


def worst(r: Retention) -> tuple[str, float] | None:
    """Return the probe that lost most since it was taught (the base's since row 0), and by how much."""
    changes = {p: c for p in _earlier(r) if (c := _since_taught(r, p)) is not None} | base_drift(r)
    if not changes:
        return None
    name = min(changes, key=lambda p: changes[p])
    return name, changes[name]


def _earlier(r: Retention) -> list[str]:
    last = len(r.rows) - 1
    return [
        p for p, first in zip(r.probes, r.taught, strict=True) if first is not None and first < last
    ]


def _since_taught(r: Retention, probe: str) -> float | None:
    first = r.taught[r.probes.index(probe)]
    if first is None:
        return None
    then, last = r.at(first, probe), r.at(-1, probe)
    return None if then is None or last is None else last - then


@frozen
class Paired:
    """A difference of two scores on the same items: mean per item, standard error, p-value."""

    difference: float
    stderr: float
    p: float
    n: int
    test: str


def paired(before: Score, after: Score, *, draws: int = 2000, seed: int = 0) -> Paired | None:
    """Compare two looks at one probe item by item; positive is better. None without items.

    Right-or-wrong items: McNemar's exact test. Otherwise: paired bootstrap, two-sided.
    """
    if not before.per_item or len(before.per_item) != len(after.per_item):
        return None
    sign = 1.0 if after.higher_is_better else -1.0
    differences = [sign * (b - a) for a, b in zip(before.per_item, after.per_item, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    stderr = (
        math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n) if n > 1 else math.nan
    )
    if set(before.per_item) | set(after.per_item) <= {0.0, 1.0}:
        return Paired(mean, stderr, _mcnemar(differences), n, "McNemar exact")
    return Paired(mean, stderr, _bootstrap(differences, draws, seed), n, "paired bootstrap")


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

    Never less than 2^(1−n), what n items can say at most: with all signs free, n of one sign come as often as that.
    """
    values = np.asarray(differences)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
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


def retention_of(
    rows: Sequence[tuple[str, Mapping[str, Score]]], taught_by: Mapping[str, str]
) -> Retention:
    """Build R from (row name, scores) pairs; ``taught_by``: probe → phase name, or ``"base"``."""
    names = [name for name, _ in rows]
    probes = tuple(taught_by)
    first: dict[str, Score] = {}
    for _, scores in rows:
        first |= {p: s for p, s in scores.items() if p not in first}
    return Retention(
        probes=probes,
        rows=tuple(names),
        values=tuple(tuple(s[p].value if p in s else None for p in probes) for _, s in rows),
        higher_is_better=tuple(first[p].higher_is_better if p in first else True for p in probes),
        taught=tuple(_row_of(names, taught_by[p]) for p in probes),
    )


def _row_of(names: Sequence[str], phase: str) -> int | None:
    """Row of a phase; one that has not run yet stands after the last. None for the base."""
    if phase == "base":
        return None
    return names.index(phase) if phase in names else len(names)
