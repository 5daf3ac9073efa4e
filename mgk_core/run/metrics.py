"""The retention matrix and the metrics computed from it. Pure functions, no torch.

Notation: rows i = 0 … P (row 0 of the matrix is the baseline, scored on the
untouched base; row i is scored after phase i−1 of the pipeline), columns are probes. Scores are
oriented so that higher is better before they are used here.
Definitions: BWT as Lopez-Paz & Ranzato 2017 (arXiv 1706.08840); forgetting as Chaudhry et al.
2018 (arXiv 1801.10112), where the maximum is over the rows from the teaching phase onwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
        return (
            None if value is None else (value if self.higher_is_better[j] else -value)
        )


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
        past = [
            v
            for i in range(first, len(r.rows) - 1)
            if (v := r.at(i, probe)) is not None
        ]
        last = r.at(-1, probe)
        if past and last is not None:
            losses.append(max(past) - last)
    return sum(losses) / len(losses) if losses else None


def by_metric(
    figure: Callable[[Retention], float | None], r: Retention, metrics: Sequence[str]
) -> dict[str, float]:
    """Return ``figure`` over the probes of each metric: a mean over different units means nothing."""
    found = {}
    for metric in dict.fromkeys(metrics):
        value = figure(_of_probes(r, [i for i, m in enumerate(metrics) if m == metric]))
        if value is not None:
            found[metric] = value
    return found


def _of_probes(r: Retention, columns: Sequence[int]) -> Retention:
    return Retention(
        probes=tuple(r.probes[j] for j in columns),
        rows=r.rows,
        values=tuple(tuple(row[j] for j in columns) for row in r.values),
        higher_is_better=tuple(r.higher_is_better[j] for j in columns),
        taught=tuple(r.taught[j] for j in columns),
    )


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
    """Return the probe that lost most since it was taught (base probes: since the baseline), and how much."""
    changes = {
        p: c for p in _earlier(r) if (c := _since_taught(r, p)) is not None
    } | base_drift(r)
    if not changes:
        return None
    name = min(changes, key=lambda p: changes[p])
    return name, changes[name]


def _earlier(r: Retention) -> list[str]:
    last = len(r.rows) - 1
    return [
        p
        for p, first in zip(r.probes, r.taught, strict=True)
        if first is not None and first < last
    ]


def _since_taught(r: Retention, probe: str) -> float | None:
    first = r.taught[r.probes.index(probe)]
    if first is None:
        return None
    then, last = r.at(first, probe), r.at(-1, probe)
    return None if then is None or last is None else last - then


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
        values=tuple(
            tuple(s[p].value if p in s else None for p in probes) for _, s in rows
        ),
        higher_is_better=tuple(
            first[p].higher_is_better if p in first else True for p in probes
        ),
        taught=tuple(_row_of(names, taught_by[p]) for p in probes),
    )


def _row_of(names: Sequence[str], phase: str) -> int | None:
    """Row of a phase; one that has not run yet comes after the last. None for the base."""
    if phase == "base":
        return None
    return names.index(phase) if phase in names else len(names)
