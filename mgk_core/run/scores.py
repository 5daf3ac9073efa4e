"""Rows of the retention matrix: measuring one, keeping it, and writing retention.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import attrs
import cattrs
import torch

from mgk_core.contract.bundle import Probe, Score
from mgk_core.contract.comparison import change as compare_scores
from mgk_core.contract.comparison import interval, item_unit, paired
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError, StoreError
from mgk_core.contract.files import read_json
from mgk_core.contract.progress import activity
from mgk_core.contract.settings import PhaseConfig
from mgk_core.record.store import Store, json_text, text_digest
from mgk_core.run import metrics

Row = Mapping[str, Score]


class Evaluates(Protocol):
    """What measures one probe: the hooks, or something that asks them only where it must."""

    def evaluate(self, ctx: PhaseContext, probe: Probe) -> Score:
        """Return the probe's score on the model as it is."""


def measure_row(
    hooks: Evaluates,
    ctx: PhaseContext,
    *,
    ends: bool,
    stop: Callable[[], None] = lambda: None,
) -> dict[str, Score]:
    """Score every probe of the configured split on the model as it is, with dropout off.

    ends: whether this is the first or the last row; some probes are too costly for the others. stop:
    asked before each probe; raises if the run has to stop.
    """
    model = ctx.model
    was_training = model.training
    row: dict[str, Score] = {}
    try:
        with torch.no_grad():
            wanted = [p for p in chosen_probes(ctx) if ends or p.when == "always"]
            for number, probe in enumerate(wanted, 1):
                stop()
                model.eval()  # again for each, whatever the one before has left
                with activity(f"scoring {probe.name} ({number} of {len(wanted)})"):
                    row[probe.name] = hooks.evaluate(ctx, probe)
        return row
    finally:
        model.train(was_training)


def chosen_probes(ctx: PhaseContext) -> list[Probe]:
    """Return the probes of the split that makes the row, cut to their limits."""
    settings = ctx.phase.evaluate
    probes = [p for p in ctx.probes if p.split == settings.split]
    return [
        attrs.evolve(p, items=p.items[: settings.count(p.name, len(p.items))])
        for p in probes
    ]


def unmatched_limits(
    probes: Sequence[Probe], phases: Sequence[PhaseConfig]
) -> Iterator[tuple[str, str]]:
    """Yield (phase, glob) of ``evaluate.limits`` that no probe's name matches, each glob once."""
    first = {
        glob: phase.name for phase in reversed(phases) for glob in phase.evaluate.limits
    }
    for glob, phase in first.items():
        if not any(fnmatchcase(p.name, glob) for p in probes):
            yield phase, glob


def check_probes(probes: Sequence[Probe], phases: Sequence[str]) -> None:
    """Refuse two probes of one name, or a probe of no phase."""
    names = [(p.name, p.split) for p in probes]
    if twice := sorted({n for n, s in names if names.count((n, s)) > 1}):
        raise InputError(f"probes of one name: {', '.join(twice)}; give each its own")
    for probe in probes:
        if probe.phase not in (*phases, "base"):
            raise InputError(
                f"probe {probe.name!r} is bound to {probe.phase!r}, which is not a phase of this pipeline"
            )
        if len(probe.items) == 0:
            raise InputError(f"probe {probe.name!r} has no items")


def plain(scores: Iterable[Score]) -> list[dict[str, object]]:
    """Return scores for an event: without what each item scored or was answered."""
    items = ("per_item", "answers")
    return [attrs.asdict(s, filter=lambda a, _: a.name not in items) for s in scores]


def save_row(
    store: Store,
    name: str,
    row: Row,
    *,
    digest: str,
    marks: Mapping[str, Any] | None = None,
) -> Path:
    """Write one row with every item's value; ``digest``: of the weights it was measured on."""
    # Most metrics have no answers; a row without any is written as it always was.
    scores = [
        attrs.asdict(s, filter=lambda a, value: a.name != "answers" or len(value) > 0)
        for s in row.values()
    ]
    table = {"weights": digest, **(marks or {}), "scores": scores}
    return store.write_json(name, {**table, "hash": _hash(table)})


def _hash(table: Mapping[str, Any]) -> str:
    """Digest of a row as it is written, so that one that no ledger lists yet is not believed blindly."""
    return text_digest(json_text({k: v for k, v in table.items() if k != "hash"}))


def load_row(path: Path, digest: str | None = None) -> dict[str, Score] | None:
    """Read a row back; None where there is none.

    digest: of the weights it must have been measured on; a row of others, or one that is not whole,
    is none, and is measured again.
    """
    if not path.exists():
        return None
    try:
        raw = read_json(path)
        if digest is not None and (
            raw["weights"] != digest or raw["hash"] != _hash(raw)
        ):
            return None
        scores = cattrs.structure(raw["scores"], tuple[Score, ...])
    except (
        StoreError,
        cattrs.BaseValidationError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        if digest is not None:
            return None
        raise StoreError(f"{path}: is damaged: {error}") from None
    return {s.probe: s for s in scores}


def retention_table(
    rows: Sequence[tuple[str, Row]], probes: Mapping[str, str], marks: Mapping[str, str]
) -> dict[str, Any]:
    """Return what retention.json holds: R, the figures read off it, n and standard errors."""
    r = metrics.retention_of(rows, probes)
    kinds = [str(_kind(rows, p)["metric"]) for p in r.probes]
    return {
        "probes": [
            {"name": p, "phase": probes[p], "higher_is_better": r.higher_is_better[j]}
            | _kind(rows, p)
            for j, p in enumerate(r.probes)
        ],
        "rows": [{"name": name, "mark": marks.get(name, "")} for name in r.rows],
        "R": r.values,
        "stderr": [
            [row[p].stderr if p in row else None for p in r.probes] for _, row in rows
        ],
        "n": [[row[p].n if p in row else None for p in r.probes] for _, row in rows],
        "interval": [
            [interval(row[p]) if p in row else None for p in r.probes]
            for _, row in rows
        ],
        "extra": [
            {p: dict(row[p].extra) for p in r.probes if p in row} for _, row in rows
        ],
        "bwt": metrics.bwt(r),
        "forgetting": metrics.forgetting(r),
        "forgetting_definition": metrics.FORGETTING,
        "forward_transfer": metrics.forward_transfer(r),
        "plasticity": metrics.plasticity(r),
        "gain": {p: metrics.gain(r, p) for p in r.probes},
        "gain_kept": {p: metrics.gain_kept(r, p) for p in r.probes},
        "base_drift": metrics.base_drift(r),
        "base_measured": any(v == "base" for v in probes.values()),
        "worst": metrics.worst(r),
        "bwt_by_metric": metrics.by_metric(metrics.bwt, r, kinds),
        "forgetting_by_metric": metrics.by_metric(metrics.forgetting, r, kinds),
        "changes": _changes(rows, r),
        "paired": _paired(rows, r),
    }


def _kind(rows: Sequence[tuple[str, Row]], probe: str) -> dict[str, Any]:
    for _, row in rows:
        if probe in row:
            return {"metric": row[probe].metric, "chance": row[probe].chance}
    return {"metric": "", "chance": None}


def changes_in(table: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the changes in a table of retention.json.

    Earlier versions wrote none; there they come from values and standard errors, and from the
    comparisons by item that were written.
    """
    if "changes" in table:
        found: Sequence[Mapping[str, Any]] = table["changes"]
        return found
    rows = [(row["name"], _scores_in(table, i)) for i, row in enumerate(table["rows"])]
    phases = {p["name"]: p["phase"] for p in table["probes"]}
    kinds = {p["name"]: p["metric"] for p in table["probes"]}
    known = {(p["from"], p["to"], p["probe"]): p for p in table["paired"]}
    changes = _changes(rows, metrics.retention_of(rows, phases))
    for change in changes:
        pair = known.get((change["from"], change["to"], change["probe"]))
        if pair is not None:
            metric = kinds[change["probe"]]
            unit = item_unit(metric, change["before"], change["after"])
            change |= {
                "stderr": pair["stderr"] * unit,
                "p": pair["p"],
                "test": pair["test"],
            }
    return changes


def _scores_in(table: Mapping[str, Any], i: int) -> Row:
    """Return row i as scores without items."""
    row = {}
    for j, probe in enumerate(table["probes"]):
        value = table["R"][i][j]
        if value is not None:
            row[probe["name"]] = Score(
                probe["name"], probe["metric"], value, table["n"][i][j], table["stderr"][i][j],
                probe["higher_is_better"],
            )  # fmt: skip
    return row


def _changes(
    rows: Sequence[tuple[str, Row]], r: metrics.Retention
) -> list[dict[str, Any]]:
    """Compare every probe with the row before, and between baseline, teaching phase and last row."""
    result = []
    last = len(rows) - 1
    for probe, taught in zip(r.probes, r.taught, strict=True):
        pairs = {(i - 1, i) for i in range(1, len(rows))} | {(0, last)}
        if taught is not None and taught <= last:
            pairs |= {(0, taught), (taught, last)}
        for one, other in sorted(p for p in pairs if p[0] < p[1]):
            before, after = rows[one][1].get(probe), rows[other][1].get(probe)
            if before is not None and after is not None:
                found = attrs.asdict(compare_scores(before, after))
                result.append(
                    {"from": rows[one][0], "to": rows[other][0], "probe": probe} | found
                )
    return result


def _paired(
    rows: Sequence[tuple[str, Row]], r: metrics.Retention
) -> list[dict[str, Any]]:
    """Compare scores of one probe on the same items: what its phase gained, and what is left at the end.

    Its own phase's row with the row before; the last row with the baseline and with its own phase's
    row.
    """
    result = []
    for probe, taught in zip(r.probes, r.taught, strict=True):
        last = len(rows) - 1
        pairs = (
            {(0, last)}
            if taught is None or taught > last
            else {(taught - 1, taught), (0, last), (taught, last)}
        )
        for one, other in sorted(p for p in pairs if p[0] < p[1]):
            before, after = rows[one][1].get(probe), rows[other][1].get(probe)
            found = paired(before, after) if before and after else None
            if found is not None:
                result.append(
                    {"from": rows[one][0], "to": rows[other][0], "probe": probe}
                    | attrs.asdict(found)
                )
    return result
