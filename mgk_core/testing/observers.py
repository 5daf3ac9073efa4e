"""Conformance tests of observers: any stream of events, and a state that is JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from mgk_core.contract.context import Observer, PhaseContext
from mgk_core.contract.specs import Spec
from mgk_core.testing.laws import (
    Law,
    LawResult,
    NotApplicable,
    broken,
    hold_all,
    law,
    require,
)
from mgk_core.testing.small_run import same_weights, small_phase, weights_of

Make = Callable[[PhaseContext], Sequence[Observer] | None]

STREAM: tuple[dict[str, Any], ...] = (
    {"event": "phase", "phase": "now", "index": 1, "title": "", "state": "enter"},
    {"event": "part", "part": "train"},
    {
        "event": "step", "phase": "now", "step": 10, "steps": 20, "loss": 1.5, "terms": 0.0, "grad_norm": 0.7, "lr": 1e-3,
        "skipped": 0, "count": 80, "unit": "tokens", "seconds": 0.5, "per_second": 160.0,
    },
    {
        "event": "step", "phase": "now", "step": 20, "steps": 20, "loss": None, "terms": None, "grad_norm": None, "lr": 1e-3,
        "skipped": 10, "count": 80, "unit": "tokens", "seconds": 0.0, "per_second": None,
    },
    {"event": "dev", "phase": "now", "step": 20, "loss": 1.4, "seconds": 0.1},
    {"event": "checkpoint", "phase": "now", "step": 20},
    {"event": "merge", "phase": "now", "rule": "exact", "scale": 1.0, "kept": 1.0, "warnings": []},
    {"event": "evaluation", "phase": "now", "row": "now", "scores": []},
    {"event": "gate", "phase": "now", "accept": True, "notes": [], "refusals": []},
    {"event": "an event of a later mgk", "phase": "now"},
)  # fmt: skip
"""One event of each kind, steps without a single good figure, and one that is not known yet."""


@frozen(eq=False)
class Watching:
    """Observers under test."""

    make: Make
    spec: Spec

    def ready(self) -> tuple[PhaseContext, list[Observer]]:
        """Return a phase and its observers."""
        ctx = small_phase("observe", [self.spec])
        found = list(self.make(ctx) or ())
        if not found:
            broken("it offers no observer although the phase names it")
        return ctx, found


def _feed(
    observers: Sequence[Observer], stream: Sequence[Mapping[str, Any]] = STREAM
) -> None:
    for event in stream:
        for observer in observers:
            observer.on_event(event)


@law("any stream of events")
def any_stream(watching: Watching) -> None:
    """Every kind of event passes, in any order, also without figures or of a kind not known yet."""
    for stream in (STREAM, STREAM[::-1], STREAM[:1] * 3, ()):
        _feed(watching.ready()[1], stream)


@law("it only watches")
def only_watches(watching: Watching) -> None:
    """An observer changes neither the events nor the model."""
    ctx, observers = watching.ready()
    before, stream = weights_of(ctx.bundle), copy.deepcopy(STREAM)
    _feed(observers, stream)
    require(stream == STREAM, "it changed an event")
    require(same_weights(before, ctx.bundle), "it changed a weight")


@law("its state is JSON")
def state_is_json(watching: Watching) -> None:
    """A state is plain JSON; loaded into a fresh observer it is the same state."""
    _, observers = watching.ready()
    _feed(observers)
    kept = [o.state_dict() for o in observers if hasattr(o, "state_dict")]
    if not kept:
        raise NotApplicable("it has no state")
    try:
        stored = json.loads(json.dumps(kept, allow_nan=False))
    except (TypeError, ValueError) as error:
        broken(f"its state is not JSON: {error}")
    fresh = [o for o in watching.ready()[1] if hasattr(o, "state_dict")]
    for observer, state in zip(fresh, stored, strict=True):
        if not hasattr(observer, "load_state_dict"):
            broken("it has state_dict and no load_state_dict")
        observer.load_state_dict(state)
    again = json.loads(json.dumps([o.state_dict() for o in fresh]))
    require(again == stored, "the state that was loaded comes back changed")


LAWS: tuple[Law[Watching], ...] = (any_stream, only_watches, state_is_json)


def check_observer(make: Make, spec: Spec, named: str = "observer") -> list[LawResult]:
    """Run every test on observers. make: as ``mgk_observers``; spec: what the phase names."""
    return hold_all(LAWS, Watching(make, spec), named)
