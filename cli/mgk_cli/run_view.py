"""What came of a run, drawn from what stands in its directory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt
from mgk_cli.console import make
from mgk_cli.matrix import matrix
from mgk_cli.memory import memory_of
from mgk_cli.retention import changes, figures
from mgk_cli.tables import Column, fitted, text, whole

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mgk_core.tools.run_summary import PhaseLook, RunLook

PARTS = ("load", "statistics", "attach", "training", "checkpoint", "merge", "evaluation", "save")
STATES = {
    "committed": ("merged", "green"),
    "kept_apart": ("kept apart", "yellow"),
    "rolled_back": ("rolled back", "bold red"),
    "begun": ("begun", "yellow"),
    "waiting": ("to come", "dim"),
}
STATUS = {
    "finished": ("finished", "green"),
    "stopped": ("stopped between phases", "yellow"),
    "unfinished": ("unfinished", "yellow"),
    "refused": ("refused by a gate", "bold red"),
    "running": ("running", "cyan"),
}


def summary(run: RunLook, *, heat: bool = False) -> Iterator[RenderableType]:
    """Yield the parts of a run's report: phases, merges, matrix, figures, tests, time, what comes next."""
    console = make()
    yield title(run)
    yield training(run, console.width)
    if any(p.entry for p in run.phases):
        yield text("")
        yield merging(run, console.width)
    yield from gates(run)
    if run.retention.get("rows"):
        yield text("")
        yield from matrix(
            run.retention, width=console.width, heat=heat, colour=console.color_system is not None
        )
        yield from figures(run.retention)
        yield from changes(run.retention, console.width)
    yield text("")
    yield from costs(run)
    yield from ending(run)


def title(run: RunLook) -> Text:
    """Say which run this is, how it stands, on what and where."""
    said, style = STATUS[run.status]
    line = (
        text(run.name, "bold")
        .append(f"  {fmt.clean(run.directory)}  ", "not bold")
        .append(said, style)
    )
    if run.owner:
        line.append(f" ({fmt.clean(run.owner)})", style)
    return line.append(
        f"\nbase {base_of(run)}, {machine_of(run)}, seed {seed_of(run)}", "not bold dim"
    )


def base_of(run: RunLook) -> str:
    """Return what the base is called."""
    base = run.config.get("base", {})
    return fmt.clean(base.get("id") or base.get("path") or base.get("type", "?"))


def machine_of(run: RunLook) -> str:
    """Return device and threads."""
    if run.ledger is None:
        return fmt.clean(run.config.get("run", {}).get("device", "?"))
    environment = run.ledger.environment
    return f"{fmt.clean(environment.get('device', '?'))}, {fmt.several(environment.get('threads', 0), 'thread')}"


def seed_of(run: RunLook) -> str:
    """Return the run's seed."""
    return str(run.config.get("run", {}).get("seed", "?"))


def training(run: RunLook, width: int) -> Table:
    """Draw one line a phase: what became of it and how it trained."""
    columns = [
        Column("phase"), Column("result"), Column("steps", right=True), Column("loss", right=True),
        Column("pace", right=True, spare=2), Column("memory", right=True, spare=1), Column("time", right=True, spare=3),
    ]  # fmt: skip
    for phase in run.phases:
        said, style = STATES[phase.state]
        time = sum(run.phase_times.get(phase.name, {}).values())
        cells = (*_trained(phase), memory_of(run, phase), fmt.duration(time) if time else "")
        row = [text(f"{phase.index + 1} {phase.name}"), text(said, style), *map(text, cells)]
        for column, cell in zip(columns, row, strict=True):
            column.cells.append(cell)
    return fitted(columns, width)


def _trained(phase: PhaseLook) -> tuple[str, str, str]:
    t = phase.training
    if not t.steps:
        return "", "", ""
    steps = str(t.steps) if t.step == t.steps else f"{t.step}/{t.steps}"
    skipped = f" ({t.skipped} left out)" if t.skipped else ""
    return (
        steps + skipped,
        f"{fmt.number(t.first_loss)} → {fmt.number(t.last_loss)}",
        fmt.rate(t.per_second, t.unit),
    )


def merging(run: RunLook, width: int) -> Table:
    """Draw one line a phase: what merging cost, and the ledger's chain."""
    columns = [
        Column("merged"), Column("delta kept", right=True), Column("rounding", right=True, spare=2),
        Column("‖ΔW‖/‖W‖", right=True, spare=3), Column("merged ≟ live", right=True),
        Column("weights before", spare=5), Column("adapter", spare=4), Column("weights after", spare=1),
    ]  # fmt: skip
    for phase in run.phases:
        entry = phase.entry
        if entry is None:
            continue
        kept, compared = _merged(phase)
        relative = phase.merge.get("relative") if entry.result == "committed" else None
        cells = (
            f"{phase.index + 1} {phase.name}", kept, fmt.number(entry.max_error, 2) if entry.max_error is not None else "",
            fmt.number(relative, 2) if relative is not None else "", compared,
            fmt.digest(entry.base), fmt.digest(entry.adapter), fmt.digest(entry.merged),
        )  # fmt: skip
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(text(cell))
    return fitted(columns, width)


def _merged(phase: PhaseLook) -> tuple[str, str]:
    entry = phase.entry
    if entry is None or entry.kept is None:
        return "not merged", ""
    kept = fmt.share(entry.kept)
    if entry.kept_total is not None and abs(entry.kept_total - entry.kept) >= 5e-3:
        kept += f" (residual: {fmt.share(entry.kept_total)})"
    if entry.scale != 1:
        kept += f" of {fmt.number(entry.scale, 3)}×"
    if entry.transforms:
        kept += f" of {'+'.join(entry.transforms)}"
    if not entry.verify:
        return (
            kept,
            "changed on purpose" if entry.scale != 1 or entry.transforms else "not compared",
        )
    sign = "≤" if entry.verify["error"] <= entry.verify["bound"] else ">"
    then = (
        "" if entry.exact else ", then changed"
    )  # by its merge rule: what stands is not what was compared
    return kept, f"{entry.verify['error']:.1e} {sign} {entry.verify['bound']:.1e}{then}"


def gates(run: RunLook) -> Iterator[Text]:
    """Say what gates refused, what was tried, and what they noted."""
    for phase in run.phases:
        for attempt in phase.entry.attempts if phase.entry else ():
            for refusal in attempt.refusals:
                yield text(f"{phase.name}: refused by {refusal.gate}: {refusal.reason}", "red")
            yield text(f"{phase.name}: then {attempt.method}", "yellow")
        for note in phase.entry.notes if phase.entry else ():
            yield text(f"{phase.name}: {note}", "yellow")
        for warning in phase.merge.get("warnings", ()):
            yield text(f"{phase.name}: {warning}", "yellow")


def costs(run: RunLook) -> Iterator[Text]:
    """Say where the time went."""
    total = sum(run.times.values())
    if not total:
        return
    ordered = [p for p in PARTS if p in run.times] + sorted(set(run.times) - set(PARTS))
    parts = ", ".join(
        f"{p} {fmt.duration(run.times[p])} ({fmt.share(run.times[p] / total)})" for p in ordered
    )
    yield text(f"time {fmt.duration(total)}: {parts}")


def ending(run: RunLook) -> Iterator[Text]:
    """Say where the model lies and what can be done next."""
    for note in run.notes:
        yield text(note, "yellow")
    if run.model is not None and run.status == "finished":
        yield whole(f"model {run.model}", "bold")
        yield whole(f"next: mgk verify {run.directory}")
    elif run.status in ("unfinished", "stopped"):
        yield whole(f"next: mgk resume {run.directory}")
    elif run.status == "refused":
        phase = next(p.name for p in run.phases if p.state == "rolled_back")
        yield whole(
            f"next: mgk phase {run.directory} {phase} --out DIR --set phases.{phase}.KEY=VALUE"
        )
