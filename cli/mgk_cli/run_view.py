"""Every table of a run: the outcome, then training, merging, the retention matrix and timings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt
from mgk_cli.console import make
from mgk_cli.matrix import matrix
from mgk_cli.memory import memory_of
from mgk_cli.outcome import outcome
from mgk_cli.retention import changes, figures
from mgk_cli.run_facts import STATES
from mgk_cli.tables import Column, fitted, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mgk_core.record.ledger import PhaseEntry
    from mgk_core.tools.run_summary import PhaseSummary, RunSummary

PARTS = (
    "load",
    "statistics",
    "attach",
    "training",
    "checkpoint",
    "merge",
    "evaluation",
    "save",
)


def all_tables(run: RunSummary) -> Iterator[RenderableType]:
    """Yield the outcome and every table of a run."""
    console = make()
    yield from outcome(run, console.width)
    yield text("")
    yield training(run, console.width)
    if any(p.entry for p in run.phases):
        yield text("")
        yield merging(run, console.width)
    yield from notes(run)
    if run.retention.get("rows"):
        yield text("")
        colour = console.color_system is not None
        yield from matrix(run.retention, width=console.width, heat=True, colour=colour)
        yield from figures(run.retention)
        yield from changes(run.retention, console.width)
    yield text("")
    yield from costs(run)


def training(run: RunSummary, width: int) -> Table:
    """Draw one line per phase: its result and how it trained."""
    columns = [
        Column("training", shrink=True), Column("result"), Column("steps", right=True),
        Column("loss", right=True), Column("pace", right=True, spare=2),
        Column("peak memory", right=True, spare=1), Column("time", right=True, spare=3),
    ]  # fmt: skip
    for phase in run.phases:
        state, style = STATES[phase.state]
        time = sum(run.phase_times.get(phase.name, {}).values())
        row = [
            text(f"{phase.index + 1} {phase.name}"),
            text(state, style),
            *map(text, _trained(phase)),
            text(memory_of(run, phase)),
            text(fmt.duration(time) if time else ""),
        ]
        for column, cell in zip(columns, row, strict=True):
            column.cells.append(cell)
    return fitted(columns, width)


def _trained(phase: PhaseSummary) -> tuple[str, str, str]:
    t = phase.training
    if not t.steps:
        return "", "", ""
    steps = str(t.steps) if t.step == t.steps else f"{t.step}/{t.steps}"
    if t.best_step is not None:
        steps += f" (early stop, best {t.best_step})"
    skipped = f" ({t.skipped} skipped)" if t.skipped else ""
    loss = f"{fmt.number(t.first_loss)} → {fmt.number(t.last_loss)}"
    return steps + skipped, loss, fmt.rate(t.per_second, t.unit)


def merging(run: RunSummary, width: int) -> Table:
    """Draw one line per phase: what the merge lost to rounding, and the ledger's chain."""
    columns = [
        Column("merge", shrink=True), Column("delta kept", right=True),
        Column("rounding", right=True, spare=2), Column("‖ΔW‖/‖W‖", right=True, spare=3),
        Column("vs unmerged", right=True), Column("weights before", spare=5),
        Column("adapter", spare=4), Column("weights after", spare=1),
    ]  # fmt: skip
    for phase in run.phases:
        if phase.entry is not None:
            for column, cell in zip(
                columns, _merge_cells(phase, phase.entry), strict=True
            ):
                column.cells.append(text(cell))
    return fitted(columns, width)


def _merge_cells(phase: PhaseSummary, entry: PhaseEntry) -> Iterator[str]:
    relative = phase.merge.get("relative") if entry.result == "committed" else None
    yield f"{phase.index + 1} {phase.name}"
    yield _delta_kept(entry)
    yield fmt.number(entry.max_error, 2) if entry.max_error is not None else ""
    yield fmt.number(relative, 2) if relative is not None else ""
    yield _compared(entry)
    yield fmt.digest(entry.base)
    yield fmt.digest(entry.adapter)
    yield fmt.digest(entry.merged)


def _delta_kept(entry: PhaseEntry) -> str:
    if entry.kept is None:
        return "not merged"
    kept = fmt.share(entry.kept)
    if entry.kept_total is not None and abs(entry.kept_total - entry.kept) >= 5e-3:
        kept += f" (residual: {fmt.share(entry.kept_total)})"
    if entry.scale != 1:
        kept += f" of {fmt.number(entry.scale, 3)}×"
    if entry.transforms:
        kept += f" of {'+'.join(entry.transforms)}"
    return kept


def _compared(entry: PhaseEntry) -> str:
    """Return how far merged and unmerged outputs differ, with the tolerance."""
    if entry.kept is None:
        return ""
    if not entry.verify:
        changed = entry.scale != 1 or entry.transforms
        return "changed on purpose" if changed else "not compared"
    sign = "≤" if entry.verify["error"] <= entry.verify["bound"] else ">"
    # A merge rule may change the delta after it was verified.
    then = "" if entry.exact else ", then changed"
    return f"{entry.verify['error']:.1e} {sign} {entry.verify['bound']:.1e}{then}"


def notes(run: RunSummary) -> Iterator[Text]:
    """Yield the notes of gates and merges."""
    for phase in run.phases:
        for note in phase.entry.notes if phase.entry else ():
            yield text(f"{phase.name}: {note}", "yellow")
        for warning in phase.merge.get("warnings", ()):
            yield text(f"{phase.name}: {warning}", "yellow")


def costs(run: RunSummary) -> Iterator[Text]:
    """Yield where the time went."""
    total = sum(run.times.values())
    if not total:
        return
    ordered = [p for p in PARTS if p in run.times] + sorted(set(run.times) - set(PARTS))
    parts = (
        f"{p} {fmt.duration(run.times[p])} ({fmt.share(run.times[p] / total)})"
        for p in ordered
    )
    yield text(f"time {fmt.duration(total)}: {', '.join(parts)}")
