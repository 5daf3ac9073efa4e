"""A picture of the retention matrix (PNG, SVG or PDF, by the file's ending; needs matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_core.contract.files import read_json

SUFFIXES = (".png", ".svg", ".pdf")


def colours(table: Mapping[str, Any]) -> list[list[float | None]]:
    """Return each cell's share of the probe's largest move from the baseline, better positive, in −1 … 1.

    Probes of unlike kinds (perplexity, accuracy) get comparable colours that way; None: not measured.
    """
    rows: list[list[float | None]] = [[None] * len(table["probes"]) for _ in table["R"]]
    for j, probe in enumerate(table["probes"]):
        sign = 1.0 if probe["higher_is_better"] else -1.0
        column = [row[j] for row in table["R"]]
        zero = column[0]
        moves = [
            None if v is None or zero is None else sign * (v - zero) for v in column
        ]
        most = max((abs(m) for m in moves if m is not None), default=0.0)
        for i, move in enumerate(moves):
            rows[i][j] = None if move is None else (move / most if most > 0 else 0.0)
    return rows


def heatmap(retention: Mapping[str, Any] | Path, path: Path) -> Path:
    """Draw R: rows are the base and the phases, columns the probes, numbers as measured.

    :param retention: what retention.json holds, or the file
    :param path: where to; its ending chooses the format
    """
    table: Mapping[str, Any] = (
        read_json(retention) if isinstance(retention, Path) else retention
    )
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a picture's name ends in {', '.join(SUFFIXES)}")
    axes, save = figure(1.6 + 1.1 * len(table["probes"]), 1.2 + 0.5 * len(table["R"]))
    shades = [[math.nan if v is None else v for v in row] for row in colours(table)]
    axes.imshow(shades, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(
        range(len(table["probes"])),
        [p["name"] for p in table["probes"]],
        rotation=30,
        ha="right",
    )
    axes.set_yticks(
        range(len(table["rows"])),
        [
            f"{r['name']} ({r['mark']})" if r["mark"] else r["name"]
            for r in table["rows"]
        ],
    )
    for i, row in enumerate(table["R"]):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                "–" if value is None else f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=8,
            )
    axes.set_title("retention: green better, red worse than the base", fontsize=9)
    save(path)
    return path


def figure(width: float, height: float) -> tuple[Any, Any]:
    """Return (axes, save): a figure of this size in inches, without any window system."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentFault(
            "pictures need matplotlib; install it: pip install 'mgk[plot]'"
        ) from None
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, dpi=150)

    return made.add_subplot(), save
