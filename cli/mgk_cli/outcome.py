"""What a run achieved, on one screen: gains, costs, gates, where the model is, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mgk_cli import formatting as fmt
from mgk_cli.effects import Effect, Effects, effects_in
from mgk_cli.memory import peak_of
from mgk_cli.retention import baseline_drift
from mgk_cli.run_facts import STATES, base_of, machine_of, seed_of
from mgk_cli.tables import Column, fitted, room, text, whole

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mgk_core.tools.run_summary import RunSummary

MOST_COSTS = 2  # probes named per phase among those it made worse
REPORT = "report.html"
"""Written by the report plugin where its extra is installed."""

MOST_PROBES = 20  # lines of the table of probes
NAME_WIDTHS = (
    28,
    20,
    16,
    12,
    8,
)  # cells of a probe's name in the phase table, widest first
LEGEND = (
    "+ better, - worse, ± standard error; *** p < 0.001, ** 0.01, * 0.05, else n.s."
)


def outcome(run: RunSummary, width: int) -> Iterator[RenderableType]:
    """Yield the parts of the screen."""
    yield headline(run)
    yield text(facts(run), "dim")
    effects = effects_in(run.retention)
    yield text("")
    yield _phases(run, effects, width)
    yield from refusals(run)
    if len(run.retention.get("rows", ())) > 1:
        yield text("")
        yield from _probes(run, effects, width)
        yield text(LEGEND, "dim")
        if not run.retention["base_measured"]:
            yield baseline_drift(run.retention)
    yield from ending(run)


def headline(run: RunSummary) -> Text:
    """Return the result line: how the run ended and whether the gates passed."""
    merged = sum(p.state == "committed" for p in run.phases)
    count = f"{merged} of {fmt.several(len(run.phases), 'phase')} merged"
    ended, style = _ended(run)
    line = text(fmt.clean(run.name), "bold")
    return line.append(f" {ended}", f"not bold {style}").append(
        f": {count}, {gates(run)}"
    )


def _ended(run: RunSummary) -> tuple[str, str]:
    if run.status == "running":
        return f"running ({fmt.clean(run.owner or '')})", "cyan"
    begun = next((p for p in run.phases if p.state == "begun"), None)
    if run.status == "unfinished" and begun is not None:
        step = f" at step {begun.training.step} of {begun.training.steps}"
        return (
            f"interrupted in {begun.name}{step if begun.training.steps else ''}",
            "yellow",
        )
    return {
        "finished": ("finished", "green"),
        "stopped": ("stopped between phases", "yellow"),
        "unfinished": ("interrupted", "yellow"),
        "refused": ("refused by a gate", "bold red"),
    }[run.status]


def gates(run: RunSummary) -> str:
    """Return whether the gates passed."""
    ended = [p for p in run.phases if p.entry is not None]
    if failed := [p.name for p in ended if p.state in ("rolled_back", "kept_apart")]:
        return f"gates failed in {', '.join(failed)}"
    configured = run.config.get("phases", {})
    if not any(_has_gates(configured.get(p.name, {})) for p in ended):
        return "no gates ran"
    return "all gates passed"


def _has_gates(phase: Mapping[str, Any]) -> bool:
    return any(gate is not False for gate in phase.get("gate", {}).values())


def facts(run: RunSummary) -> str:
    """Return base, machine, seed, time and memory."""
    parts = [f"base {base_of(run)}", machine_of(run), f"seed {seed_of(run)}"]
    if total := sum(run.times.values()):
        parts += [fmt.duration(total), f"peak memory {peak_of(run)}"]
    return ", ".join(parts)


def _phases(run: RunSummary, effects: Effects, width: int) -> Table:
    """Draw what each phase gained on its own probes and what it cost the others."""
    for longest in NAME_WIDTHS:
        columns = _phase_columns(run, effects, longest)
        if room(columns) <= width:
            break
    return fitted(columns, width)


def _phase_columns(run: RunSummary, effects: Effects, longest: int) -> list[Column]:
    columns = [
        Column("phase"),
        Column("result"),
        Column("gained"),
        Column("cost to other probes"),
    ]
    rows = [r["name"] for r in run.retention.get("rows", ())]
    own = {p["name"]: p["phase"] for p in run.retention.get("probes", ())}
    for phase in run.phases:
        gained, lost = [], []
        if phase.name in rows:
            found = effects.between(rows[rows.index(phase.name) - 1], phase.name)
            gained = [e for e in found if own[e.probe] == phase.name]
            others = (e for e in found if own[e.probe] != phase.name)
            lost = [e for e in others if e.significant and e.change < 0]
        state, style = STATES[phase.state]
        named = len(gained) > 1 or any(e.probe != phase.name for e in gained)
        cells = (
            text(f"{phase.index + 1} {phase.name}"),
            text(state, style),
            _effect_lines(gained, longest if named else 0),
            _costs(lost, longest, measured=bool(gained)),
        )
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    return columns


def _costs(lost: Sequence[Effect], longest: int, *, measured: bool) -> Text:
    """Name the probes that lost most; the others are counted."""
    if not lost:
        return text("none significant" if measured else "", "dim")
    worst = sorted(lost, key=lambda e: e.weight)
    lines = _effect_lines(worst[:MOST_COSTS], longest)
    if len(worst) > MOST_COSTS:
        lines.append(f"\nand {len(worst) - MOST_COSTS} more", "dim")
    return lines


def _effect_lines(effects: Sequence[Effect], longest: int) -> Text:
    """Return one line per effect. longest: cells of a probe's name; 0: without names."""
    names = [
        fmt.shorten(fmt.clean(e.probe), longest) if longest else "" for e in effects
    ]
    wide = max(map(fmt.cells, names), default=0)
    lines = text("")
    for number, (name, effect) in enumerate(zip(names, effects, strict=True)):
        label = f"{name}{' ' * (wide - fmt.cells(name) + 1)}" if longest else ""
        lines.append("\n" * (number > 0) + label).append(str(effect), effect.style)
    return lines


def _probes(run: RunSummary, effects: Effects, width: int) -> Iterator[RenderableType]:
    """Draw every probe before the first phase and after the last."""
    table = run.retention
    rows = [r["name"] for r in table["rows"]]
    columns = [
        Column("probe", shrink=True), Column("phase", spare=1), Column("metric", spare=2),
        Column("baseline", right=True),
        Column("final" if run.status == "finished" else "latest", right=True),
        Column("change"), Column("gain kept", right=True),
    ]  # fmt: skip
    for j, probe in enumerate(table["probes"][:MOST_PROBES]):
        name = probe["name"]
        total = effects.of(name, rows[0], rows[-1])
        cells = (
            text(name), text(probe["phase"]),
            text(probe["metric"] + (" ↑" if probe["higher_is_better"] else " ↓")),
            text(fmt.number(table["R"][0][j])), text(fmt.number(table["R"][-1][j])),
            text("–", "dim") if total is None or len(rows) == 1 else text(str(total), total.style),
            text(effects.gain_kept(name)),
        )  # fmt: skip
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    yield fitted(columns, width)
    more = len(table["probes"]) - MOST_PROBES
    if more > 0:
        yield text(f"and {more} more", "dim")


def refusals(run: RunSummary) -> Iterator[Text]:
    """Yield which training ended early, what gates refused and what was tried after it."""
    for phase in run.phases:
        if (best := phase.training.best_step) is not None:
            t = phase.training
            yield text(
                f"{phase.name}: early stop at step {t.step} of {t.steps}; dev loss was best at step {best}",
                "dim",
            )
        for attempt in phase.entry.attempts if phase.entry else ():
            for refusal in attempt.refusals:
                yield text(
                    f"{phase.name}: refused by {refusal.gate}: {refusal.reason}", "red"
                )
            yield text(f"{phase.name}: then {attempt.method}", "yellow")


def ending(run: RunSummary) -> Iterator[Text]:
    """Yield where the model is and what to do next."""
    for note in run.notes:
        yield text(note, "yellow")
    if run.model is not None and run.status == "finished":
        yield whole(f"model: {run.model}", "bold")
    page = run.directory / REPORT
    for command in _next(run, page.exists()):
        yield whole(f"next: {command}")
    if page.exists():
        yield whole(f"report: {page}", "bold")


def _next(run: RunSummary, reported: bool) -> Iterator[str]:  # noqa: FBT001 - one caller
    """Yield commands; the report has all that `mgk show --all` prints."""
    where = run.directory
    if run.damaged:
        yield f"mgk verify {where}"
    elif run.status == "finished":
        if (where / "model" / "tokenizer_config.json").exists():
            yield f"mgk ask {where} QUESTION"
        if not reported:
            yield f"mgk show {where} --all"
        yield f"mgk verify {where}"
    elif run.status in ("unfinished", "stopped"):
        yield f"mgk resume {where}"
    elif run.status == "refused":
        phase = next(p.name for p in run.phases if p.state == "rolled_back")
        yield f"mgk phase {where} {phase} --out DIR --set phases.{phase}.KEY=VALUE"
