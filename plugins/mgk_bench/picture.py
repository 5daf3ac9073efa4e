"""One dot a method: gap closed against cost, or what a method keeps against what it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from mgk_bench.heatmap import figure
from mgk_bench.table import Line

COST = "CPU time of training and merging, relative to plain merging"
GAP = "gap closed: 0 is plain merging, 1 is joint training"


@frozen
class Dot:
    """One method on one group (a suite and order). hollow: it trains on examples of earlier tasks."""

    name: str
    group: str
    x: float
    y: float
    error: float | None = None
    hollow: bool = False


def dots_of(found: Sequence[Line]) -> list[Dot]:
    """Return the closed gap against CPU time; lines without either are left out."""
    dots = []
    for line in found:
        gap = line.mean["gap_closed"]
        if line.cpu is None or gap is None:
            continue
        group = f"{line.suite} {line.order}".strip()
        error, hollow = line.stderr["gap_closed"], line.needs_old_data
        dots.append(Dot(line.method, group, line.cpu, gap, error, hollow))
    return dots


def draw(dots: Sequence[Dot], x: str, y: str, path: Path) -> Path:
    """Draw one panel. x, y: what the axes show; a mark per group, a colour per method."""
    groups = list(dict.fromkeys(dot.group for dot in dots))
    names = list(dict.fromkeys(dot.name for dot in dots))
    axes, save = figure(9.0, 5.0)
    for dot in dots:
        colour = f"C{names.index(dot.name) % 10}"
        axes.errorbar(
            dot.x,
            dot.y,
            dot.error,
            fmt="osD^vP"[groups.index(dot.group) % 6],
            color=colour,
            mfc="none" if dot.hollow else colour,
            markersize=6,
        )
        axes.annotate(
            dot.name,
            (dot.x, dot.y),
            textcoords="offset points",
            xytext=(5, 3),
            fontsize=6,
            color=colour,
        )
    for number, group in enumerate(groups):
        axes.plot([], [], "osD^vP"[number % 6], color="grey", label=group)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if groups:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(path)
    return path
