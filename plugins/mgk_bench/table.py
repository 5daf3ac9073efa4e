"""From cells to a table: means over seeds with standard errors, as Markdown, LaTeX, CSV and JSON lines."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from mgk_bench.cell import Cell
from mgk_bench.figures import Difference, figures, paired_difference

NOTHING = "–"


@frozen
class Line:
    """One method on one suite and order, over all seeds.

    mean, stderr: by field of `Figures`. cpu: relative to naive. memory, kept_bytes: the largest of any seed. against: AP
    minus that of naive, paired by item. drift: base probe → mean change. cell: one of them.
    """

    method: str
    suite: str
    order: str
    seeds: tuple[int, ...]
    mean: Mapping[str, float | None]
    stderr: Mapping[str, float | None]
    cpu: float | None
    memory: int | None
    kept_bytes: int
    model_bytes: int
    needs_old_data: bool
    against: Difference | None
    drift: Mapping[str, float]
    kl: float | None


@frozen
class Column:
    """A column of the table. empty: whether it is left out when no line has anything in it."""

    title: str
    text: Callable[[Line], str]
    empty: bool = True


def lines(cells: Sequence[Cell]) -> list[Line]:
    """Group cells by suite, order and method, in the order in which they come."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.suite, cell.order, cell.method), []).append(cell)
    return [
        _line(found, {c.seed: _others(cells, c) for c in found})
        for found in groups.values()
    ]


def _others(cells: Sequence[Cell], one: Cell) -> dict[str, Cell]:
    key = (one.suite, one.order, one.seed)
    return {c.method: c for c in cells if (c.suite, c.order, c.seed) == key}


def _line(cells: Sequence[Cell], others: Mapping[int, Mapping[str, Cell]]) -> Line:
    first = cells[0]
    read = [attrs.asdict(figures(c, others[c.seed])) for c in cells]
    columns = {k: [r[k] for r in read] for k in read[0]}
    naive = [others[c.seed]["naive"] for c in cells if "naive" in others[c.seed]]
    cpu = None
    if len(naive) == len(cells) and (usual := sum(c.seconds for c in naive)) > 0:
        cpu = sum(c.seconds for c in cells) / usual
    pairs = list(zip(cells, naive, strict=False)) if cpu is not None else []
    memory = [c.memory for c in cells if c.memory is not None]
    kl = [c.kl for c in cells if c.kl is not None]
    return Line(
        method=first.method,
        suite=first.suite,
        order=first.order,
        seeds=tuple(c.seed for c in cells),
        mean={k: mean(v) for k, v in columns.items()},
        stderr={k: stderr(v) for k, v in columns.items()},
        cpu=cpu,
        memory=max(memory, default=None),
        kept_bytes=max(c.kept_bytes for c in cells),
        model_bytes=first.model_bytes,
        needs_old_data=any(c.needs_old_data for c in cells),
        against=_against(pairs),
        drift=_drift(cells),
        kl=mean(kl),
    )


def _against(pairs: Sequence[tuple[Cell, Cell]]) -> Difference | None:
    """Mean of the seeds' paired differences; the errors of the seeds are independent."""
    found = [paired_difference(a, b) for a, b in pairs if a is not b]
    known = [d for d in found if d is not None]
    if not known:
        return None
    error = math.sqrt(math.fsum(d.stderr**2 for d in known)) / len(known)
    return Difference(math.fsum(d.value for d in known) / len(known), error)


def _drift(cells: Sequence[Cell]) -> dict[str, float]:
    changes = {
        name: [c.base[name][1] - c.base[name][0] for c in cells if name in c.base]
        for name in cells[0].base
    }
    return {name: math.fsum(v) / len(v) for name, v in changes.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None where there is none."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def stderr(values: Sequence[float | None]) -> float | None:
    """Return the standard error of a mean over seeds; None for fewer than two."""
    known = [v for v in values if v is not None]
    if len(known) < 2:
        return None
    middle = sum(known) / len(known)
    return math.sqrt(
        sum((v - middle) ** 2 for v in known) / (len(known) - 1) / len(known)
    )


def _figure(key: str, *, sign: bool = False, digits: int | None = None) -> Any:
    """Return what writes one figure of a line with its standard error."""

    def text(line: Line) -> str:
        value, error = line.mean[key], line.stderr[key]
        if value is None:
            return NOTHING
        places = digits
        if places is None:
            places = 1 if abs(line.mean["ap"] or 0.0) >= 10 else 3
        found = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
        return found if error is None else f"{found} ± {error:.{places}f}"

    return text


def _against_text(line: Line) -> str:
    if line.against is None:
        return NOTHING
    return f"{line.against.value:+.3f} ± {line.against.stderr:.3f}"


def _kept(line: Line) -> str:
    text = f"{line.kept_bytes / 1e6:.2f} MB"
    if line.model_bytes:
        text += f" ({100 * line.kept_bytes / line.model_bytes:.1f} %)"
    return text


def _drifted(line: Line) -> str:
    found = [f"{name} {change:+.3f}" for name, change in line.drift.items()]
    if line.kl is not None:
        found.append(f"KL {line.kl:.3f}")
    return ", ".join(found) or NOTHING


def _megabytes(value: int | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:.0f} MB"


COLUMNS = (
    Column("method", lambda line: line.method, empty=False),
    Column("suite", lambda line: f"{line.suite} {line.order}".strip(), empty=False),
    Column("seeds", lambda line: str(len(line.seeds)), empty=False),
    Column("AP", _figure("ap")),
    Column("BWT", _figure("bwt", sign=True)),
    Column("FWT", _figure("fwt", sign=True)),
    Column("forgetting (max)", _figure("forgetting_maximum", sign=True)),
    Column("learning accuracy", _figure("learning_accuracy")),
    Column("gap closed", _figure("gap_closed", digits=2)),
    Column("AP − naive, paired", _against_text),
    Column("generated AP", _figure("generated", digits=1)),
    Column("generated BWT", _figure("generated_bwt", sign=True, digits=1)),
    Column("generated gap closed", _figure("generated_gap_closed", digits=2)),
    Column("base", _drifted),
    Column("CPU", lambda line: NOTHING if line.cpu is None else f"{line.cpu:.2f}"),
    Column("memory", lambda line: _megabytes(line.memory)),
    Column("kept", _kept),
    Column("old data", lambda line: "yes" if line.needs_old_data else "no"),
)  # fmt: skip


def table_of(found: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of text; columns that nothing fills are left out."""
    titles, columns = [], []
    for column in COLUMNS:
        texts = [column.text(line) for line in found]
        if column.empty and all(text == NOTHING for text in texts):
            continue
        titles.append(column.title)
        columns.append(texts)
    return titles, [list(row) for row in zip(*columns, strict=True)]


def as_text(found: Sequence[Line]) -> str:
    """Return a Markdown table that also reads well in a terminal."""
    return drawn(*table_of(found))


def as_csv(found: Sequence[Line]) -> str:
    """Return the table as CSV: one row a method, figures and standard errors in columns of their own."""
    keys = list(found[0].mean) if found else []
    names = [name for key in keys for name in (key, f"{key}_stderr")]
    plain = ("cpu", "memory", "kept_bytes", "model_bytes", "needs_old_data", "kl")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", "suite", "order", "seeds", *names, *plain])
    for line in found:
        values = [v for key in keys for v in (line.mean[key], line.stderr[key])]
        seeds = " ".join(map(str, line.seeds))
        rest = [getattr(line, key) for key in plain]
        writer.writerow([line.method, line.suite, line.order, seeds, *values, *rest])
    return file.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--",
}  # fmt: skip


def as_latex(found: Sequence[Line]) -> str:
    """Return the table as a LaTeX ``tabular`` with booktabs' rules."""
    titles, rows = table_of(found)

    def row(cells: Sequence[str]) -> str:
        escaped = ("".join(_LATEX.get(c, c) for c in cell) for cell in cells)
        return "  " + " & ".join(escaped) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(titles)}}}",
            r"  \toprule",
            row(titles),
            r"  \midrule",
            *map(row, rows),
            r"  \bottomrule",
            r"\end{tabular}",
        ]
    )


def drawn(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded to one width."""
    rows = [columns, *cells]
    widths = [max(len(r[i]) for r in rows) for i in range(len(columns))]
    found = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    found.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(found)


def environment() -> dict[str, str]:
    """Return the versions that a figure depends on."""
    import numpy as np
    import torch

    import mgk

    found = {
        "mgk": mgk.__version__,
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
    tables = []
    for cell in cells:
        read = figures(cell, _others(cells, cell))
        tables.append(attrs.asdict(cell) | {"figures": attrs.asdict(read)})
    return json_lines(tables, settings)


def json_lines(
    tables: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[str]:
    """Return each table as one line, with versions and the hash of ``settings``."""
    common = {"versions": environment(), "configuration": settings_digest(settings)}
    return [json.dumps({**table, **common}) for table in tables]


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of what configured a cell."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
