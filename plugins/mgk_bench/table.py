"""From cells to the table: means over seeds with standard errors, as text, Markdown and JSON lines."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from mgk_bench.loop import Cell
from mgk_core.contract.bundle import Score
from mgk_core.run import metrics

COLUMNS = (
    "method",
    "suite",
    "ACC",
    "BWT",
    "plasticity",
    "base kept",
    "worst",
    "CPU",
    "kept",
)


@frozen
class Figures:
    """What is read off one cell's retention matrix, in the suite's unit; more is better.

    acc: mean over all tasks at the end. bwt: mean over all tasks but the last of R[last, j] − R[j, j]
    (the base task counts, taught by the baseline). plasticity: mean over the phases of R[j, j]. base_kept:
    R[last, 0] − R[0, 0]. worst: the smallest R[last, j] − R[j, j]. bwt and worst are None where all
    tasks were learnt at once.
    """

    acc: float
    bwt: float | None
    plasticity: float
    base_kept: float
    worst: float | None
    seconds: float
    kept_bytes: float


def figures(cell: Cell) -> Figures:
    """Read a cell."""
    last, names = cell.rows[-1], [f"task-{j}" for j in range(len(cell.rows[0]))]
    whole = len(cell.rows) == len(names)
    rows = [(n, _scores(names, row)) for n, row in zip(names, cell.rows, strict=False)]
    table = metrics.retention_of(rows, {n: n for n in names})
    since = [last[j] - cell.rows[j][j] for j in range(len(last) - 1)] if whole else []
    taught = [cell.rows[j][j] if whole else last[j] for j in range(1, len(last))]
    return Figures(
        acc=sum(last) / len(last),
        bwt=metrics.bwt(table) if whole else None,
        plasticity=sum(taught) / len(taught),
        base_kept=last[0] - cell.rows[0][0],
        worst=min(since) if since else None,
        seconds=cell.seconds,
        kept_bytes=cell.kept_bytes,
    )


def _scores(names: Sequence[str], row: Sequence[float]) -> dict[str, Score]:
    return {
        n: Score(n, "bench", v, 1, math.nan, higher_is_better=True)
        for n, v in zip(names, row, strict=True)
    }


@frozen
class Line:
    """One method on one suite over all seeds. mean and stderr by `Figures` field; cpu: relative to naive."""

    method: str
    suite: str
    seeds: tuple[int, ...]
    mean: Mapping[str, float | None]
    stderr: Mapping[str, float | None]
    cpu: float | None


def lines(cells: Sequence[Cell]) -> list[Line]:
    """Group cells by suite and method, in the order in which they come."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.suite, cell.method), []).append(cell)
    naive = {
        suite: sum(c.seconds for c in found) / len(found)
        for (suite, method), found in groups.items()
        if method == "naive"
    }
    return [
        _line(suite, method, found, naive.get(suite))
        for (suite, method), found in groups.items()
    ]


def _line(suite: str, method: str, cells: Sequence[Cell], naive: float | None) -> Line:
    read = [attrs.asdict(figures(c)) for c in cells]
    columns = {k: [r[k] for r in read] for k in read[0]}
    mean = {k: None if v[0] is None else sum(v) / len(v) for k, v in columns.items()}
    seconds = mean["seconds"]
    return Line(
        method=method,
        suite=suite,
        seeds=tuple(c.seed for c in cells),
        mean=mean,
        stderr={k: stderr(v) for k, v in columns.items()},
        cpu=seconds / naive if naive and seconds is not None else None,
    )


def stderr(values: Sequence[float | None]) -> float | None:
    """Return the standard error of a mean over seeds; None for fewer than two."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return None
    mean = sum(known) / len(known)
    return math.sqrt(
        sum((v - mean) ** 2 for v in known) / (len(known) - 1) / len(known)
    )


def cells_of(line: Line, digits: int = 1) -> list[str]:
    """Return a line's cells as text, in the order of `COLUMNS`."""

    def said(key: str, *, sign: bool = False) -> str:
        value, error = line.mean[key], line.stderr[key]
        if value is None:
            return "–"
        text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
        return text if error is None else f"{text} ± {error:.{digits}f}"

    kept = line.mean["kept_bytes"] or 0.0
    return [
        line.method, line.suite, said("acc"), said("bwt", sign=True), said("plasticity"), said("base_kept", sign=True),
        said("worst", sign=True), "–" if line.cpu is None else f"{line.cpu:.2f}", f"{kept / 1e6:.2f} MB",
    ]  # fmt: skip


def as_text(found: Sequence[Line]) -> str:
    """Return a Markdown table that also reads well in a terminal."""
    return drawn(
        COLUMNS,
        [cells_of(line, 2 if line.suite == "characters" else 1) for line in found],
    )


def drawn(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded to one width."""
    rows = [columns, *cells]
    widths = [max(len(r[i]) for r in rows) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def environment() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    import numpy as np
    import torch

    import mgk_core

    found = {
        "mgk": mgk_core.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    try:
        import sklearn

        found["scikit-learn"] = sklearn.__version__
    except ImportError:
        pass
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def as_json_lines(cells: Sequence[Cell], settings: Mapping[str, Any]) -> list[str]:
    """Return one JSON object per cell: matrix, figures, versions, and the hash of what configured it."""
    return json_lines(
        [
            attrs.asdict(cell) | {"figures": attrs.asdict(figures(cell))}
            for cell in cells
        ],
        settings,
    )


def json_lines(
    tables: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[str]:
    """Return each table as one line, with versions and the hash of ``settings``."""
    digest = hashlib.sha256(
        json.dumps(settings, sort_keys=True, default=str).encode()
    ).hexdigest()[:16]
    common = {"versions": environment(), "configuration": digest}
    return [json.dumps({**table, **common}) for table in tables]
