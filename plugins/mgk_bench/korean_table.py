"""From the cells of the suite ``korean`` to its table: gains, what is left of them, the base's drift, costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

import mgk
from mgk_bench.korean import BOUNDARY, PIPELINE, KoreanCell
from mgk_bench.methods import KOREAN
from mgk_bench.output import write_files
from mgk_bench.picture import Dot, draw
from mgk_bench.table import drawn, json_lines, stderr

NAIVE = "naive"
NOTHING = "–"


@frozen
class KoreanFigures:
    """What is read off one cell. Gains and drifts in nats per token.

    gain: R[j, j] − R[0, j], by probe. own: R[j, j] − R[j−1, j]. kept: (R[last, j] − R[0, j]) / gain. end:
    R[last, j] − R[0, j]. drift: R[0, b] − R[last, b] of the base's probes; positive is loss, negative is
    what the base has won. gain_share, own_share, drift_share: of naive's with the same seed. bwt: mean
    over earlier phases of R[last, j] − R[j, j]. step: CPU of training relative to naive's. boundary: CPU
    of statistics, merge, verification and commit relative to training's.
    """

    gain: Mapping[str, float]
    gain_share: Mapping[str, float]
    own: Mapping[str, float]
    own_share: Mapping[str, float]
    kept: Mapping[str, float]
    end: Mapping[str, float]
    drift: Mapping[str, float]
    drift_share: Mapping[str, float]
    bwt: float
    plasticity: float
    step: float
    boundary: float
    kept_share: float


def figures(cell: KoreanCell, naive: KoreanCell) -> KoreanFigures:
    """Read a cell; naive: plain merging with the same seed."""
    last, zero = cell.rows[-1], cell.rows[0]
    whole = len(cell.rows) == len(naive.rows)
    taught = {p: i for p, i in cell.taught.items() if i is not None}
    gain, gain_naive = (_gains(c, since_base=True) for c in (cell, naive))
    own, own_naive = (_gains(c, since_base=False) for c in (cell, naive))
    drift = {p: zero[p] - last[p] for p, i in cell.taught.items() if i is None}
    drift_naive = {p: naive.rows[0][p] - naive.rows[-1][p] for p in drift}
    earlier = {p: i for p, i in taught.items() if i < len(cell.rows) - 1}
    return KoreanFigures(
        gain=gain if whole else {},
        gain_share={p: _share(gain[p], gain_naive[p]) for p in gain} if whole else {},
        own=own if whole else {},
        own_share={p: _share(own[p], own_naive[p]) for p in own} if whole else {},
        kept={
            p: _share(last[p] - zero[p], cell.rows[i][p] - zero[p])
            for p, i in earlier.items()
        },
        end={p: last[p] - zero[p] for p in taught},
        drift=drift,
        drift_share={p: _share(drift[p], drift_naive[p]) for p in drift},
        bwt=_mean([last[p] - cell.rows[i][p] for p, i in earlier.items()]),
        plasticity=_mean([cell.rows[i][p] - zero[p] for p, i in taught.items()]),
        step=_share(
            cell.cpu.get("training", math.nan), naive.cpu.get("training", math.nan)
        ),
        boundary=_share(
            sum(cell.cpu.get(p, 0.0) for p in BOUNDARY),
            cell.cpu.get("training", math.nan),
        ),
        kept_share=_share(cell.kept_bytes, cell.model_bytes),
    )


def _gains(cell: KoreanCell, *, since_base: bool) -> dict[str, float]:
    """R[j, j] less the baseline, or less the row before."""
    taught = {p: i for p, i in cell.taught.items() if i is not None}
    return {
        p: cell.rows[i][p] - cell.rows[0 if since_base else i - 1][p]
        for p, i in taught.items()
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def figures_of(cells: Sequence[KoreanCell]) -> list[KoreanFigures]:
    """Read every cell against naive's of its seed."""
    naive = {c.seed: c for c in cells if c.method == NAIVE}
    return [figures(c, naive[c.seed]) for c in cells]


def as_text(cells: Sequence[KoreanCell]) -> str:
    """Return the Markdown table: a line per method, means over seeds ± standard errors, (shares of naive's)."""
    read = list(zip(cells, figures_of(cells), strict=True))
    first = read[0][1]
    columns = ["method", "seeds"]
    columns += [f"{p}: {what}" for p in first.gain for what in ("gain", "in its phase")]
    columns += [f"{p}: kept" for p in first.kept]
    columns += ["at the end", *(f"{p}: drift" for p in first.drift)]
    columns += ["step", "boundary / training", "kept, MB", "of the model"]
    lines = []
    for method in dict.fromkeys(c.method for c in cells):
        own = [(c, f) for c, f in read if c.method == method]
        lines.append([method, str(len(own)), *_cells(own, first)])
    return drawn(columns, lines)


def _cells(
    own: Sequence[tuple[KoreanCell, KoreanFigures]], first: KoreanFigures
) -> list[str]:
    found = [f for _, f in own]

    def column(name: str, probe: str, form: str) -> str:
        return _said([getattr(f, name).get(probe) for f in found], form)

    def of_naive(name: str, probe: str) -> str:
        share = _said(
            [getattr(f, f"{name}_share").get(probe) for f in found], ".2f", error=False
        )
        value = column(name, probe, "+.3f")
        return value if share == NOTHING else f"{value} ({share})"

    cells = [of_naive(name, probe) for probe in first.gain for name in ("gain", "own")]
    cells += [column("kept", p, ".2f") for p in first.kept]
    cells.append(
        " / ".join(
            _said([f.end[p] for f in found], "+.3f", error=False) for p in first.end
        )
    )
    cells += [of_naive("drift", p) for p in first.drift]
    cells += [
        _said([f.step for f in found], ".2f"),
        _said([f.boundary for f in found], ".2f"),
    ]
    kept = _mean([c.kept_bytes for c, _ in own])
    return [
        *cells,
        f"{kept / 1e6:.1f}",
        _said([f.kept_share for f in found], ".3f", error=False),
    ]


def _said(values: Sequence[float | None], form: str, *, error: bool = True) -> str:
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return NOTHING
    off = stderr(known) if error else None
    return f"{_mean(known):{form}}" + (
        "" if off is None else f" ± {off:{form.lstrip('+')}}"
    )


def dots_of(cells: Sequence[KoreanCell]) -> list[Dot]:
    """Return what the picture shows: BWT against plasticity, nats per token; joint has no BWT."""
    read = list(zip(cells, figures_of(cells), strict=True))
    dots = []
    for method in dict.fromkeys(c.method for c in cells):
        own = [f for c, f in read if c.method == method]
        x, y = _mean([f.plasticity for f in own]), _mean([f.bwt for f in own])
        if math.isfinite(x) and math.isfinite(y):
            dots.append(Dot(method, "korean", x, y, hollow=method == "joint"))
    return dots


def records(cells: Sequence[KoreanCell], cut: Sequence[Any]) -> list[str]:
    """Return one JSON line for each cell, with versions and the hash of what configured it."""
    tables = [
        attrs.asdict(cell) | {"figures": attrs.asdict(found)}
        for cell, found in zip(cells, figures_of(cells), strict=True)
    ]
    everything = {
        "pipeline": attrs.asdict(mgk.pipeline(PIPELINE)),
        "cut": cut,
        "methods": [attrs.asdict(m) for m in KOREAN],
    }
    return json_lines(tables, everything)


def write(out: Path, cells: Sequence[KoreanCell], cut: Sequence[Any]) -> list[Path]:
    """Write table.md, cells.jsonl and, where matplotlib is installed, picture.svg."""
    texts = {"table.md": as_text(cells), "cells.jsonl": "\n".join(records(cells, cut))}
    x, y = "plasticity: mean gain of each phase", "BWT: negative is forgetting"
    return write_files(out, texts, lambda path: draw(dots_of(cells), x, y, path))
