"""The metrics of continual learning, by the names and formulas of the papers that introduced them.

R[i, j] is the score of task j after phase i; i = 0 is the untouched base, i = T the end. t(j) is the row after
which task j was taught, j < T short for t(j) < T. Higher scores are better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from attrs import frozen

from mgk_bench.cell import Cell, Row


@frozen
class Matrix:
    """R with the row after which each task was taught."""

    rows: tuple[Row, ...]
    taught: tuple[int, ...]

    @property
    def last(self) -> Row:
        """R[T]."""
        return self.rows[-1]

    @property
    def earlier(self) -> list[int]:
        """The tasks that were taught before the last phase."""
        end = len(self.rows) - 1
        return [j for j, row in enumerate(self.taught) if row < end]

    def diagonal(self, j: int) -> float:
        """R[t(j), j]."""
        return self.rows[self.taught[j]][j]


def average_performance(r: Matrix) -> float:
    """AP = 1/n · Σ_j R[T, j] (also ACC; Lopez-Paz & Ranzato 2017, arXiv 1706.08840, eq. 2)."""
    return _mean(list(r.last))


def backward_transfer(r: Matrix) -> float | None:
    """BWT = mean over j < T of R[T, j] − R[t(j), j] (Lopez-Paz & Ranzato 2017, eq. 3). Negative: forgetting."""
    return _maybe([r.last[j] - r.diagonal(j) for j in r.earlier])


def forward_transfer(r: Matrix) -> float | None:
    """FWT = mean over t(j) ≥ 2 of R[t(j) − 1, j] − R[0, j] (Lopez-Paz & Ranzato 2017, eq. 4).

    What the phases before a task's own already do for it, against the untouched base.
    """
    later = [(j, row) for j, row in enumerate(r.taught) if row >= 2]
    return _maybe([r.rows[row - 1][j] - r.rows[0][j] for j, row in later])


def forgetting_first(r: Matrix) -> float | None:
    """Mean over j < T of R[t(j), j] − R[T, j]: first minus last, as Avalanche defines it. Equals −BWT."""
    change = backward_transfer(r)
    return None if change is None else -change


def forgetting_maximum(r: Matrix) -> float | None:
    """Mean over j < T of max_i R[i, j] − R[T, j], 1 ≤ i < T (Chaudhry et al. 2018, arXiv 1801.10112, eq. 3).

    The maximum is over all rows between the first phase and the one before the last, those before
    task j was taught included. A task that the base was made on counts from the baseline.
    """
    losses = []
    for j in r.earlier:
        rows = r.rows[min(1, r.taught[j]) : -1]
        losses.append(max(row[j] for row in rows) - r.last[j])
    return _maybe(losses)


def learning_accuracy(r: Matrix) -> float:
    """LA = mean over the tasks taught in a phase of R[t(j), j] (Riemer et al. 2019, arXiv 1810.11910)."""
    return _mean([r.diagonal(j) for j, row in enumerate(r.taught) if row > 0])


def gap_closed(ap: float, naive: float, joint: float) -> float | None:
    """(AP − AP of naive) / (AP of joint − AP of naive): 0 is as good as no method at all, 1 as good as all tasks at once.

    Free of the metric's unit and of the base. None where joint is not better than naive.
    """
    gap = joint - naive
    return (ap - naive) / gap if gap > 0 else None


@frozen
class Figures:
    """The metrics of one cell, in the suite's unit. generated: AP of the generated metric."""

    ap: float
    bwt: float | None
    fwt: float | None
    forgetting_first: float | None
    forgetting_maximum: float | None
    learning_accuracy: float
    generated: float | None = None
    generated_bwt: float | None = None
    gap_closed: float | None = None
    generated_gap_closed: float | None = None


def figures(cell: Cell, others: Mapping[str, Cell] | None = None) -> Figures:
    """Read a cell. others: method → cell of the same suite, order and seed, for the closed gap."""
    r = Matrix(cell.rows, cell.taught)
    ap, answers = average_performance(r), _generated(cell)
    naive, joint = (others or {}).get("naive"), (others or {}).get("joint")
    closed = answers_closed = None
    if naive is not None and joint is not None:
        ends = [average_performance(Matrix(c.rows, c.taught)) for c in (naive, joint)]
        closed = gap_closed(ap, *ends)
        low, high = _generated(naive), _generated(joint)
        if answers is not None and low is not None and high is not None:
            answers_closed = gap_closed(answers, low, high)
    return Figures(
        ap=ap,
        bwt=backward_transfer(r),
        fwt=forward_transfer(r),
        forgetting_first=forgetting_first(r),
        forgetting_maximum=forgetting_maximum(r),
        learning_accuracy=learning_accuracy(r),
        generated=answers,
        generated_bwt=_generated_bwt(cell, r),
        gap_closed=closed,
        generated_gap_closed=answers_closed,
    )


def _generated(cell: Cell) -> float | None:
    return _mean(list(cell.generated[1])) if cell.generated else None


def _generated_bwt(cell: Cell, r: Matrix) -> float | None:
    if not cell.generated:
        return None
    taught, last = cell.generated
    return _maybe([last[j] - taught[j] for j in r.earlier])


@frozen
class Difference:
    """How much better one cell is than another on the same items; stderr: of that paired difference."""

    value: float
    stderr: float


def paired_difference(one: Cell, other: Cell) -> Difference | None:
    """AP of one minus AP of the other, with the standard error over items.

    Tasks weigh the same: with d the differences of task j's n_j items, the error is
    √(Σ_j var(d_j) / n_j) / (number of tasks). None where the cells keep no items of equal number.
    """
    sizes = [[len(row) for row in cell.items] for cell in (one, other)]
    if not one.items or sizes[0] != sizes[1] or min(sizes[0]) < 2:
        return None
    means, variances = [], []
    for mine, theirs in zip(one.items, other.items, strict=True):
        change = [a - b for a, b in zip(mine, theirs, strict=True)]
        mean = _mean(change)
        means.append(mean)
        spread = math.fsum((d - mean) ** 2 for d in change) / (len(change) - 1)
        variances.append(spread / len(change))
    return Difference(_mean(means), math.sqrt(math.fsum(variances)) / len(means))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _maybe(values: Sequence[float]) -> float | None:
    return _mean(values) if values else None
