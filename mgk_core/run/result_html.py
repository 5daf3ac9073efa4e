"""How the result of a run shows itself in a notebook: the retention matrix and each phase's loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mgk_core.record.run_directory import METRICS, REPORT

WIDTH, HEIGHT = 220, 48


def result_html(
    directory: Path, retention: Mapping[str, Any], *, finished: bool
) -> str:
    """Return a table of the scores with their errors, and a curve of each phase's training loss."""
    state = "finished" if finished else "not finished"
    parts = [
        f"<p><b>{escape(directory.name)}</b>: {state}; <code>{escape(str(directory))}</code></p>"
    ]
    if retention.get("rows"):
        parts += _matrix(retention)
    for phase, losses in _losses(directory / METRICS).items():
        parts.append(_curve(phase, losses))
    if (directory / REPORT).is_file():
        parts.append(f"<p>report: <code>{escape(str(directory / REPORT))}</code></p>")
    return "".join(parts)


def _matrix(table: Mapping[str, Any]) -> Iterator[str]:
    yield "<table><thead><tr><th>after</th>"
    for probe in table["probes"]:
        better = "higher" if probe["higher_is_better"] else "lower"
        yield f"<th>{escape(probe['name'])}<br><small>{escape(probe['metric'])}, {better} is better</small></th>"
    yield "</tr></thead><tbody>"
    for row, values, errors in zip(
        table["rows"], table["R"], table["stderr"], strict=True
    ):
        cells = [f"<td>{_cell(v, e)}</td>" for v, e in zip(values, errors, strict=True)]
        yield f"<tr><th>{escape(row['name'])}</th>{''.join(cells)}</tr>"
    yield "</tbody></table>"


def _cell(value: Any, error: Any) -> str:
    # A score that is not finite is written as text.
    if isinstance(value, (int, float)) and isinstance(error, (int, float)):
        return f"{value:.4g} ± {error:.2g}"
    return "" if value is None else escape(str(value))


def _losses(path: Path) -> dict[str, list[float]]:
    """Return phase → the losses of its recorded steps; a line that cannot be read is left out."""
    found: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "step" and isinstance(event.get("loss"), float):
            found.setdefault(str(event["phase"]), []).append(event["loss"])
    return found


def _curve(phase: str, losses: Sequence[float]) -> str:
    low, high = min(losses), max(losses)
    across, up = max(len(losses) - 1, 1), (high - low) or 1.0
    points = " ".join(
        f"{WIDTH * i / across:.1f},{HEIGHT * (high - loss) / up:.1f}"
        for i, loss in enumerate(losses)
    )
    label = f"{phase}: loss {losses[0]:.4g} to {losses[-1]:.4g}"
    return (
        f'<figure style="display:inline-block;margin:4px 12px"><svg width="{WIDTH}" height="{HEIGHT}" role="img"'
        f' aria-label="{escape(label)}"><polyline points="{points}" fill="none" stroke="#2a78b8"'
        f' stroke-width="1.5"/></svg><figcaption>{escape(label)}</figcaption></figure>'
    )
