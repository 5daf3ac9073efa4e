"""A plan, drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt
from mgk_cli.tables import Column, fitted, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mgk_core.tools.plan import PhasePlan, Plan


def drawn(plan: Plan, width: int) -> Iterator[RenderableType]:
    """Yield the parts of a plan."""
    yield text(plan.name, "bold").append(f"  {plan.title}", "not bold")
    where = f"{plan.device}, {fmt.several(plan.threads, 'thread')}, seed {plan.seed}"
    yield text(
        f"base {plan.base}: {fmt.count(plan.parameters)} parameters, {fmt.size(plan.base_bytes)}; {where}"
    )
    yield text("")
    yield _phases(plan, width)
    for phase in plan.phases:
        yield text("")
        yield from _details(phase)
    yield text("")
    yield from _totals(plan)


def _phases(plan: Plan, width: int) -> Table:
    columns = [
        Column("phase"), Column("examples", right=True), Column("batch", right=True), Column("steps", right=True),
        Column("adapter", spare=1), Column("weights", right=True, spare=2), Column("trainable", right=True),
        Column("of all", right=True, spare=3),
    ]  # fmt: skip
    for phase in plan.phases:
        micro = "" if phase.micro_batch == phase.batch_size else f" by {phase.micro_batch}"
        cells = (
            f"{phase.index + 1} {phase.name}", fmt.count(phase.examples), f"{phase.batch_size}{micro}",
            fmt.count(phase.steps), phase.adapter, str(phase.targets), fmt.count(phase.trainable),
            f"{100 * phase.share:.2f} %",
        )  # fmt: skip
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(text(cell))
    return fitted(columns, width)


def _details(phase: PhasePlan) -> Iterator[Text]:
    yield text(f"{phase.index + 1} {phase.name}", "bold")
    yield _pair("uses", ", ".join(f"{slot} {what}" for slot, what in phase.plugins.items()))
    probes = [f"{p.name} ({p.metric}, n {p.items}, {p.split})" for p in phase.probes]
    yield _pair("probes", ", ".join(probes) or "none")
    yield _pair("memory", _sizes(phase.memory))
    yield _pair("disk", _sizes(phase.disk))
    for note in phase.notes:
        yield _pair("data", note)


def _pair(label: str, content: str) -> Text:
    return text(f"  {label}: ", "dim").append(fmt.clean(content), "not dim")


def _sizes(parts: object) -> str:
    assert hasattr(parts, "items")  # noqa: S101 - a mapping of part to bytes
    return (
        ", ".join(f"{part} {fmt.size(value)}" for part, value in parts.items() if value)
        or "nothing"
    )


def _totals(plan: Plan) -> Iterator[Text]:
    """Say what the whole needs, and what stands in the way."""
    runtime = (
        f"{fmt.size(plan.runtime)} of it beside the weights: libraries, tokenizer, copies"
        if plan.device == "cpu"
        else "on the device and off it"
    )
    yield text(
        f"memory at the peak: about {fmt.size(plan.peak)} ({runtime}; the rest as single batches take it, without what"
        " the allocator holds back)"
    )
    yield text(
        f"disk of the run: about {fmt.size(plan.disk)}, {fmt.size(plan.base_bytes)} of it model/"
    )
    taught = {p.phase for phase in plan.phases for p in phase.probes}
    if "base" not in taught:
        yield text(
            "base UNMEASURED: no probe measures what the untouched base can do", "bold yellow"
        )
    hooks = ", ".join(
        f"{hook.removeprefix('mgk_')} ({', '.join(names)})" for hook, names in plan.hooks.items()
    )
    yield _pair("hooks", hooks)
    for conflict in plan.conflicts:
        yield text(f"conflict: {conflict}", "yellow")
    if not plan.conflicts:
        yield text("no conflicts; nothing was run")
