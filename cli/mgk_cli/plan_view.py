"""The plan of a run as text and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt
from mgk_cli.tables import Column, fitted, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mgk_core.tools.plan import PhasePlan, Plan, ProbePlan


def drawn(plan: Plan, width: int, *, hooks: bool = False) -> Iterator[RenderableType]:
    """Yield the parts of a plan. hooks: also which plugins implement which hooks."""
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
        if plan.ranks > 1:
            yield _pair("processes", _shared(phase))
    if plan.probes:
        yield text("")
        yield _pair("probes of the pipeline", _listed(plan.probes))
    yield text("")
    yield from _totals(plan)
    if hooks:
        yield text("")
        yield _hooks(plan, width)


def _phases(plan: Plan, width: int) -> Table:
    columns = [
        Column("phase", shrink=True), Column("examples", right=True), Column("batch", right=True), Column("steps", right=True),
        Column("adapter", spare=1), Column("targets", right=True, spare=2), Column("trainable", right=True),
        Column("share", right=True, spare=3),
    ]  # fmt: skip
    for phase in plan.phases:
        micro = (
            "" if phase.micro_batch == phase.batch_size else f" by {phase.micro_batch}"
        )
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
    yield _pair(
        "uses", ", ".join(f"{slot} {what}" for slot, what in phase.plugins.items())
    )
    yield _pair("probes", _listed(phase.probes) or "none")
    yield _pair("memory", _sizes(phase.memory))
    yield _pair("disk", _sizes(phase.disk))
    for note in phase.notes:
        yield _pair("data", note)


def _shared(phase: PhasePlan) -> str:
    """Describe how a step is shared out, and what it costs."""
    rank = phase.rank
    if rank.micro_batches == 1:
        return (
            f"all {rank.ranks} compute the whole batch, because it is one micro-batch; to share it out set"
            f" train.micro_batch, e.g. {max(1, phase.batch_size // rank.ranks)}"
        )
    spare = (
        f" (of {rank.turns * rank.ranks} turns {rank.repeated} are spare)"
        if rank.repeated
        else ""
    )
    count = fmt.several(rank.micro_batches, "micro-batch", "micro-batches")
    return f"each computes {rank.turns} of {count} of a step{spare} and receives {fmt.size(rank.received)} a step"


def _listed(probes: Sequence[ProbePlan]) -> str:
    return ", ".join(f"{p.name} ({p.metric}, n {p.items}, {p.split})" for p in probes)


def _pair(label: str, content: str) -> Text:
    return text(f"  {label}: ", "dim").append(fmt.clean(content), "not dim")


def _sizes(parts: object) -> str:
    assert hasattr(parts, "items")  # noqa: S101 - a mapping of part to bytes
    return (
        ", ".join(f"{part} {fmt.size(value)}" for part, value in parts.items() if value)
        or "nothing"
    )


def _totals(plan: Plan) -> Iterator[Text]:
    """Yield the totals of memory and disk, and conflicts."""
    runtime = (
        f"including {fmt.size(plan.runtime)} for libraries, tokenizer and copies of weights"
        if plan.device == "cpu"
        else "on the device and the host"
    )
    each = f" in each of {plan.ranks} processes" if plan.ranks > 1 else ""
    yield text(
        f"peak memory: about {fmt.size(plan.peak)}{each}, {runtime}; measured on single batches,"
        " without what the allocator reserves"
    )
    yield text(
        f"disk: about {fmt.size(plan.disk)}, of which model/ takes {fmt.size(plan.base_bytes)}"
    )
    taught = {p.phase for phase in plan.phases for p in phase.probes}
    taught |= {p.phase for p in plan.probes}
    if "base" not in taught:
        yield text(
            "base UNMEASURED: no probe measures what the original base can do",
            "bold yellow",
        )
    for conflict in plan.conflicts:
        yield text(f"conflict: {conflict}", "yellow")
    for warning in plan.warnings:
        yield text(warning, "yellow")
    if not plan.conflicts:
        yield text("no conflicts; dry run, nothing was trained")


def _hooks(plan: Plan, width: int) -> Table:
    columns = [Column("hook"), Column("called plugins, in order")]
    for hook, names in plan.hooks.items():
        columns[0].cells.append(text(hook))
        columns[1].cells.append(text(", ".join(names)))
    return fitted(columns, width)
