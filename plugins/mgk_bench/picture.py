"""BWT against plasticity: what a method keeps, and what it still learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgk_bench.heatmap import figure
from mgk_bench.table import Line


def draw(found: Sequence[Line], path: Path) -> Path:
    """Draw one panel; a point per method and suite, a mark per suite."""
    marks = dict(
        zip(dict.fromkeys(line.suite for line in found), "osD^vP", strict=False)
    )
    methods = list(dict.fromkeys(line.method for line in found))
    axes, save = figure(9.0, 5.0)
    for line in found:
        x, y = line.mean["plasticity"], line.mean["bwt"]
        if x is None or y is None:
            continue
        colour = f"C{methods.index(line.method) % 10}"
        axes.plot(x, y, marks[line.suite], color=colour, markersize=6)
        axes.annotate(
            line.method,
            (x, y),
            textcoords="offset points",
            xytext=(5, 3),
            fontsize=6,
            color=colour,
        )
    for suite, mark in marks.items():
        axes.plot([], [], mark, color="grey", label=suite)
    axes.set_xlabel("plasticity: mean score of each phase when it was taught")
    axes.set_ylabel("BWT: negative is forgetting")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(path)
    return path
