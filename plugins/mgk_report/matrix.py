"""The retention matrix as a table of cells: what is shown, in which colour, and what hovering explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from mgk_report.record import Run, Table

NOISE = 2.0
"""Standard errors below which a difference is not called one."""


@frozen
class Cell:
    """One score. shade: −1 (worst against the baseline) … 1 (best), None where not measured.

    share: the part of the probe's gain that this row has, as text. explanation: for hovering and
    for screen readers. taught: whether this row's phase teaches this probe.
    """

    value: str
    share: str
    shade: float | None
    explanation: str
    taught: bool


@frozen
class Column:
    """One probe: its name, metric, direction and what a guess scores."""

    name: str
    metric: str
    better: str
    chance: str


@frozen
class Row:
    """The scores after one phase; the first row is the untouched base."""

    name: str
    mark: str
    cells: Sequence[Cell]


@frozen
class Matrix:
    """All of it, ready to be drawn."""

    columns: Sequence[Column]
    rows: Sequence[Row]


def matrix(run: Run) -> Matrix:
    """Return a run's retention matrix; without rows where nothing was measured yet."""
    table = run.retention
    if not table:
        return Matrix((), ())
    columns = [_column(probe) for probe in table["probes"]]
    rows = []
    for i, head in enumerate(table["rows"]):
        cells = [_cell(table, i, j) for j in range(len(columns))]
        name = "baseline" if i == 0 else str(head["name"])
        rows.append(Row(name, str(head["mark"]), cells))
    return Matrix(columns, rows)


def _column(probe: Table) -> Column:
    better = "higher is better" if probe["higher_is_better"] else "lower is better"
    chance = probe.get("chance")
    return Column(
        str(probe["name"]),
        str(probe["metric"]),
        better,
        "" if chance is None else f"chance {chance:.3g}",
    )


def _cell(table: Table, i: int, j: int) -> Cell:
    value = table["R"][i][j]
    probe = table["probes"][j]
    taught = i > 0 and probe["phase"] == table["rows"][i]["name"]
    if value is None:
        return Cell("–", "–", None, "not measured in this row", taught)
    error, n = table["stderr"][i][j], table["n"][i][j]
    text = f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"
    lines = [f"{probe['name']} after {table['rows'][i]['name']}: {text} (n = {n})"]
    if i > 0:
        lines += _changes(table, i, j)
    return Cell(
        text, share_of_gain(table, i, j), _shade(table, i, j), "; ".join(lines), taught
    )


def _changes(table: Table, i: int, j: int) -> list[str]:
    """Describe the paired differences that end in this row."""
    names = [row["name"] for row in table["rows"]]
    found = []
    for pair in table.get("paired", ()):
        if pair["probe"] == table["probes"][j]["name"] and pair["to"] == names[i]:
            start = "the baseline" if pair["from"] == names[0] else pair["from"]
            found.append(
                f"{pair['difference']:+.3g} ± {pair['stderr']:.2g} against {start}, same items,"
                f" p = {pair['p']:.2g} ({pair['test']})"
            )
    return found


def _better(table: Table, i: int, j: int) -> float | None:
    """Return by how much row i is better than the baseline on probe j."""
    zero, value = table["R"][0][j], table["R"][i][j]
    if zero is None or value is None:
        return None
    return (
        float(value - zero)
        if table["probes"][j]["higher_is_better"]
        else float(zero - value)
    )


def _shade(table: Table, i: int, j: int) -> float | None:
    """Return the change from the baseline as a share of the probe's largest change in any row."""
    changes = [_better(table, k, j) for k in range(len(table["R"]))]
    largest = max(
        (abs(c) for c in changes if c is not None and math.isfinite(c)), default=0.0
    )
    change = changes[i]
    if change is None or not math.isfinite(change):
        return None
    return change / largest if largest > 0 else 0.0


@frozen
class Gain:
    """What a phase gained on a probe that it teaches, in the metric's unit, and whether that is more than noise."""

    change: float
    significant: bool


def gain(table: Table, j: int) -> Gain | None:
    """Return the gain of probe j in the phase that teaches it, against the baseline; None where it has none."""
    phase = table["probes"][j]["phase"]
    taught = [
        i for i, row in enumerate(table["rows"]) if i > 0 and row["name"] == phase
    ]
    change = _better(table, taught[0], j) if taught else None
    if change is None:
        return None
    return Gain(change, change != 0 and _significant(table, taught[0], j, change))


def _significant(table: Table, i: int, j: int, change: float) -> bool:
    """Judge by the paired difference where the items are the same, else by both rows' errors."""
    rows, probe = table["rows"], table["probes"][j]["name"]
    for pair in table.get("paired", ()):
        if (pair["from"], pair["to"], pair["probe"]) == (
            rows[0]["name"],
            rows[i]["name"],
            probe,
        ):
            return bool(abs(pair["difference"]) > NOISE * pair["stderr"])
    errors = [table["stderr"][k][j] for k in (0, i)]
    return all(e is not None for e in errors) and abs(change) > NOISE * math.hypot(
        *errors
    )


def share_of_gain(table: Table, i: int, j: int) -> str:
    """Return how much of the taught gain row i has; ``n.s.`` where that gain is within its noise."""
    found, change = gain(table, j), _better(table, i, j)
    if found is None or change is None:
        return "–"
    return f"{change / found.change:.0%}" if found.significant else "n.s."


def worse(run: Run) -> list[Mapping[str, Any]]:
    """Return the paired differences over the whole run that are significantly worse, the worst first."""
    rows = run.retention.get("rows", ())
    if len(rows) < 2:
        return []
    last = rows[-1]["name"]
    pairs = [
        pair
        for pair in run.retention.get("paired", ())
        if pair["to"] == last and pair["difference"] < -NOISE * pair["stderr"]
    ]
    return sorted(
        pairs, key=lambda pair: pair["difference"] / (pair["stderr"] or math.inf)
    )
