"""The curve of a learning-rate range test, drawn with characters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt
from mgk_cli.tables import text

if TYPE_CHECKING:
    from rich.text import Text

    from mgk_core.tools.lr_find import Curve

HEIGHT = 12
WIDEST = 72
LABEL = 9
"""Cells of the numbers beside the vertical axis."""


def drawn(curve: Curve, width: int) -> Iterator[Text]:
    """Yield the curve and what follows from it. width: of the terminal, in cells."""
    yield text(f"phase {curve.phase}: smoothed loss by learning rate", "bold")
    if curve.points:
        for line in chart(curve, min(width, WIDEST) - LABEL - 2):
            yield text(line)
    if curve.ended:
        yield text(f"ended at step {len(curve.points)}: {curve.ended}", "dim")
    yield from _advice(curve)


def _advice(curve: Curve) -> Iterator[Text]:
    if curve.suggestion is None:
        yield text(
            "the loss did not fall at any rate: raise --to or --steps, or check the data",
            "yellow",
        )
        return
    yield text(
        f"steepest at {curve.steepest:.2g}, lowest at {curve.minimum:.2g},"
        f" configured {curve.configured:.2g}"
    )
    value = f"{curve.suggestion:.1e}"
    yield text(f"suggestion: phases.{curve.phase}.optimizer.lr = {value}", "green")


def chart(curve: Curve, width: int) -> list[str]:
    """Return the rows of the chart: the smoothed loss over the logarithm of the rate.

    width: columns, each the mean of the points in it. The suggestion's column is marked.
    """
    first, last = (math.log(curve.points[i].lr) for i in (0, -1))
    span = max(last - first, 1e-9)
    columns: list[list[float]] = [[] for _ in range(width)]
    for point in curve.points:
        columns[_place(math.log(point.lr), first, span, width)].append(point.smooth)
    means = [sum(c) / len(c) if c else None for c in columns]
    found = [m for m in means if m is not None]
    low = min(found)
    # What diverges at the end would flatten everything else: it is cut at twice the fall.
    high = min(max(found), low + 2 * max(found[0] - low, 1e-12))
    rows = [[" "] * width for _ in range(HEIGHT)]
    if curve.suggestion is not None:
        mark = _place(math.log(curve.suggestion), first, span, width)
        for row in rows:
            row[mark] = "┊"
    for x, mean in enumerate(means):
        if mean is not None:
            share = min(1.0, (mean - low) / max(high - low, 1e-12))
            rows[round((1 - share) * (HEIGHT - 1))][x] = "•"
    labels = {0: fmt.number(high), HEIGHT - 1: fmt.number(low)}
    lines = [f"{labels.get(i, ''):>{LABEL}} │{''.join(r)}" for i, r in enumerate(rows)]
    ends = [f"{curve.points[i].lr:.1e}" for i in (0, -1)]
    axis = f"{ends[0]}{ends[1]:>{width - len(ends[0])}}"
    return [*lines, f"{'':>{LABEL}} └{'─' * width}", f"{'':>{LABEL}}  {axis}"]


def _place(value: float, first: float, span: float, width: int) -> int:
    """Return the column of a logarithm, within the chart."""
    return max(0, min(width - 1, round((value - first) / span * (width - 1))))
