"""Pipelines as they are declared: a base, an ordered tuple of phases, defaults.

A declaration names plugins and imports none: each slot is a plain mapping whose ``type`` names
which plugin's configuration class reads it (`mgk_core.config.resolve` does that). Slots that may hold
several entries (``retention``, ``gate``, ``recover``) are mappings from type to options, in
order; ``False`` removes an inherited entry.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from mgk_core.contract.errors import InputError, nearest

Options = Mapping[str, Any]
"""One slot's table: its ``type`` and that type's keys."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_name(name: str, what: str) -> str:
    """Return a name that is safe as a file name and a TOML key, or raise `InputError`."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{what} {name!r}: expected 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit"
        )
    return name


@frozen
class Phase:
    """One stage as declared: data, adapter, optimizer, loss, training, probes' gate, merge rule.

    after, before: where to insert the phase into a pipeline that did not list it.
    """

    name: str
    data: Options = field(factory=dict)
    adapter: Options = field(factory=dict)
    optimizer: Options = field(factory=dict)
    step: Options = field(factory=dict)
    loss: Options = field(factory=dict)
    train: Options = field(factory=dict)
    merge: Options = field(factory=dict)
    evaluate: Options = field(factory=dict)
    retention: Options = field(factory=dict)
    gate: Options = field(factory=dict)
    recover: Options = field(factory=dict)
    observe: Options = field(factory=dict)
    transform: Options = field(factory=dict)
    title: str = ""
    after: str | None = None
    before: str | None = None

    def __attrs_post_init__(self) -> None:
        check_name(self.name, "phase name")


@frozen
class Pipeline:
    """A base model, an ordered tuple of phases, and what all phases share.

    defaults: a phase's slots, merged below each phase's own. run: seed, threads, and the other
    settings of `mgk_core.config.resolve.RunSettings`. probes: name → table of a probe that comes
    with no phase's data.
    """

    name: str
    base: Options
    phases: tuple[Phase, ...] = ()
    defaults: Options = field(factory=dict)
    run: Options = field(factory=dict)
    title: str = ""
    probes: Options = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        check_name(self.name, "pipeline name")
        names = [p.name for p in self.phases]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise InputError(
                f"pipeline {self.name!r}: phase names used twice: {', '.join(twice)}"
            )

    def with_phases(self, inserted: Iterable[Phase]) -> Pipeline:
        """Return this pipeline with further phases at the places they name."""
        return evolve(self, phases=tuple(order((*self.phases, *inserted))))


def order(phases: Sequence[Phase]) -> list[Phase]:
    """Sort phases: the listed order holds; one with ``after`` or ``before`` goes beside that one.

    Several that name the same anchor keep the order in which they are listed. `InputError`
    names an unknown phase, the phases of a cycle, or a wish that cannot be met.
    """
    by_name = {p.name: p for p in phases}
    if len(by_name) < len(phases):
        names = [p.name for p in phases]
        twice = sorted({n for n in names if names.count(n) > 1})
        raise InputError(f"phase names used twice: {', '.join(twice)}")
    graph: dict[str, set[str]] = {p.name: set() for p in phases}
    for phase in phases:
        for other, key in ((phase.after, "after"), (phase.before, "before")):
            if other is not None and other not in by_name:
                raise InputError(
                    f"phase {phase.name!r}: {key}={other!r}: no such phase{nearest(other, by_name)}"
                )
        graph[phase.name] = {a for a in (phase.after, phase.before) if a is not None}
    try:
        anchored = [
            by_name[n] for n in graphlib.TopologicalSorter(graph).static_order()
        ]
    except graphlib.CycleError as error:
        raise InputError(
            f"phases wait for each other in a cycle: {' → '.join(error.args[1])}"
        ) from None
    result = [p for p in phases if not graph[p.name]]
    rank = {p.name: i for i, p in enumerate(phases)}
    for phase in (p for p in anchored if graph[p.name]):
        _insert(result, phase, rank)
    return result


def _insert(result: list[Phase], phase: Phase, rank: Mapping[str, int]) -> None:
    """Put a phase beside its anchor; behind those put there for the same reason and listed earlier."""
    names = [p.name for p in result]
    if phase.after is None:
        assert phase.before is not None  # noqa: S101 - one of the two is set
        place = names.index(phase.before)
        while (
            place
            and result[place - 1].before == phase.before
            and rank[names[place - 1]] > rank[phase.name]
        ):
            place -= 1
    else:
        place = names.index(phase.after) + 1
        while (
            place < len(result)
            and result[place].after == phase.after
            and rank[names[place]] < rank[phase.name]
        ):
            place += 1
        if phase.before is not None and names.index(phase.before) < place:
            raise InputError(
                f"phase {phase.name!r}: after={phase.after!r} and before={phase.before!r} cannot both hold:"
                f" {phase.before!r} does not come after {phase.after!r}"
            )
    result.insert(place, phase)


__all__ = ["Options", "Phase", "Pipeline"]
