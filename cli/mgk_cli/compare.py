"""Several runs side by side: result, scores, costs, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mgk_cli import formatting as fmt
from mgk_cli.effects import effects_in
from mgk_cli.matrix import cell, explained
from mgk_cli.memory import peak_of
from mgk_cli.retention import by_metric
from mgk_cli.run_facts import STATES, STATUS, base_of, machine_of, seed_of
from mgk_cli.tables import Column, fitted, room, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from mgk_core.tools.run_summary import RunSummary

Rows = list[tuple[str, list[str]]]
MOST = 40  # differing settings that are listed
LONGEST = 32  # characters of a setting's value


def side_by_side(runs: Sequence[RunSummary], width: int) -> Iterator[RenderableType]:
    """Yield the tables that compare runs, split into blocks of columns that fit."""
    names = [fmt.clean(r.directory.name or str(r.directory)) for r in runs]
    scores = list(_scores(runs))
    yield from _tables(
        [*_status(runs), *scores, *_figures(runs), *_costs(runs)], names, width
    )
    written = "".join(score for _, row in scores for score in row)
    if legend := explained(written):
        yield text("; ".join(legend), "dim")
    yield text("")
    if len({r.name for r in runs}) > 1:
        yield text("different pipelines: settings not compared")
        return
    differing = _settings(runs)
    if not differing:
        yield text("same configuration")
        return
    yield text("settings that differ", "dim")
    yield from _tables(differing[:MOST], names, width)
    if len(differing) > MOST:
        yield text(f"and {len(differing) - MOST} more; see the run.toml files")


def _tables(rows: Rows, names: Sequence[str], width: int) -> Iterator[Table]:
    """Draw rows as tables with as many runs side by side as fit."""
    labels = Column("", cells=[text(label, "dim") for label, _ in rows])
    columns = [
        Column(n, cells=[text(cells[i]) for _, cells in rows])
        for i, n in enumerate(names)
    ]
    block: list[Column] = []
    for column in columns:
        if block and room((labels, *block, column)) > width:
            yield fitted([labels, *block], width)
            block = []
        block.append(column)
    yield fitted([labels, *block], width)


def _status(runs: Sequence[RunSummary]) -> Rows:
    rows: Rows = [
        ("status", [STATUS[r.status][0] for r in runs]),
        ("base", [base_of(r) for r in runs]),
    ]
    rows += [
        ("machine", [machine_of(r) for r in runs]),
        ("seed", [seed_of(r) for r in runs]),
    ]
    for phase in dict.fromkeys(p.name for r in runs for p in r.phases):
        states = [
            next((STATES[p.state][0] for p in r.phases if p.name == phase), "–")
            for r in runs
        ]
        rows.append((f"phase {phase}", states))
    return rows


def _scores(runs: Sequence[RunSummary]) -> Iterator[tuple[str, list[str]]]:
    """Yield each probe's last score and the share of its gain that is kept."""
    for probe in dict.fromkeys(
        p["name"] for r in runs for p in r.retention.get("probes", ())
    ):
        yield probe, [_last(r.retention, probe) for r in runs]
        kept = [_gain_kept(r.retention, probe) for r in runs]
        if any(k != "–" for k in kept):
            yield "  gain kept", kept


def _gain_kept(table: Mapping[str, Any], probe: str) -> str:
    known = any(p["name"] == probe for p in table.get("probes", ()))
    return effects_in(table).gain_kept(probe) if known else "–"


def _last(table: Mapping[str, Any], probe: str) -> str:
    names = [p["name"] for p in table.get("probes", ())]
    return (
        cell(table, len(table["rows"]) - 1, names.index(probe))
        if probe in names
        else "–"
    )


def _figures(runs: Sequence[RunSummary]) -> Rows:
    tables = [r.retention for r in runs]
    rows: Rows = []
    for metric in dict.fromkeys(m for t in tables for m in by_metric(t, "bwt")):
        bwt = [by_metric(t, "bwt").get(metric) for t in tables]
        rows.append((f"BWT {metric}", [fmt.signed(value) for value in bwt]))
        forgotten = [by_metric(t, "forgetting").get(metric) for t in tables]
        rows.append(
            (f"forgetting {metric}", [fmt.number(value, 3) for value in forgotten])
        )
    rows.append(("base since the baseline", [_drift(t) for t in tables]))
    return rows


def _drift(table: Mapping[str, Any]) -> str:
    if not table.get("base_measured"):
        return "UNMEASURED"
    return "\n".join(f"{p} {fmt.signed(d)}" for p, d in table["base_drift"].items())


def _costs(runs: Sequence[RunSummary]) -> Rows:
    heads = [r.ledger.head if r.ledger else "" for r in runs]
    return [
        ("time", [fmt.duration(sum(r.times.values()) or None) for r in runs]),
        ("  training", [fmt.duration(r.times.get("training")) for r in runs]),
        ("peak memory", [peak_of(r) for r in runs]),
        ("weights", [fmt.digest(h) or "–" for h in heads]),
    ]


def _settings(runs: Sequence[RunSummary]) -> Rows:
    """Return the settings that differ between runs."""
    flat = [dict(_flat(r.config)) for r in runs]
    keys = dict.fromkeys(k for f in flat for k in f)
    rows = (
        (k, [json.dumps(f[k], ensure_ascii=False) if k in f else "–" for f in flat])
        for k in keys
    )
    return [
        (k, [_short(v) for v in values])
        for k, values in rows
        if len(set(values)) > 1 and not k.endswith("title")
    ]


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
