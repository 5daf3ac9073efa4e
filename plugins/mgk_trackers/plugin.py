"""The hooks of mgk_trackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_trackers.specs import TRACKERS

if TYPE_CHECKING:
    from pathlib import Path

    from mgk_core.contract.context import Observer, PhaseContext
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the trackers, which are observers."""
    for name, cls in TRACKERS.items():
        registry.add("observe", name, cls)


@hookimpl
def mgk_observers(ctx: PhaseContext) -> Sequence[Observer]:
    """Send a phase's scalars to the trackers that it names."""
    from mgk_trackers.observer import observer

    found = observer(ctx)
    return [] if found is None else [found]


@hookimpl(trylast=True)
def mgk_recorded(run: Path, phase: str) -> None:
    """Send the matrix and the ledger, and at the end the report, which another plugin writes before."""
    from mgk_trackers.observer import recorded

    recorded(run, phase)
