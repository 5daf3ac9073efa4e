"""What is tried after a refusal, in which order, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mgk_core.context import PhaseContext
from mgk_core.errors import ConfigError
from mgk_core.outcome import Recovery, Refusal
from mgk_validation.plugin import mgk_recover

Phases = Callable[..., PhaseContext]
REFUSALS = (Refusal("max-drop", "worse"),)


def tries(ctx: PhaseContext) -> list[Recovery]:
    """Ask the entries in turn, as a transition does, until all are through."""
    tried: list[Recovery] = []
    for spec in ctx.phase.recover:
        while (found := mgk_recover(ctx=ctx, tried=tried, spec=spec)) is not None:
            tried.append(found)
            if found.action == "stop":
                return tried
    return tried


def test_scales_are_tried_in_order_then_the_next_entry(phase_of: Phases) -> None:
    """Each scale once; then the adapter is kept apart, once."""
    ctx = phase_of(recover={"scale-search": {"scales": [0.6, 0.3]}, "keep-apart": True})
    found = tries(ctx)
    assert [(r.action, r.method) for r in found] == [
        ("propose", "scale-search"), ("propose", "scale-search"), ("keep_apart", "keep-apart"),
    ]  # fmt: skip
    assert [r.proposal.scale for r in found[:2] if r.proposal] == [0.6, 0.3]
    assert found[0].evidence == {"scale": 0.6}


def test_training_on_brings_its_methods(phase_of: Phases) -> None:
    """Steps, times and the added methods are those of the entry."""
    ctx = phase_of(recover={"train-on": {"steps": 7, "times": 2}})
    found = tries(ctx)
    assert [(r.action, r.steps) for r in found] == [("train", 7), ("train", 7)]


def test_stop_ends_it(phase_of: Phases) -> None:
    """Nothing after it is asked."""
    ctx = phase_of(recover={"stop": True, "keep-apart": True})
    assert [r.action for r in tries(ctx)] == ["stop"]


def test_nothing_configured_offers_nothing(phase_of: Phases) -> None:
    """Without entries there is no recovery, and another plugin's entry is not answered."""
    ctx = phase_of()
    assert tries(ctx) == []
    assert mgk_recover(ctx=ctx, tried=[], spec=ctx.phase.adapter) is None


@pytest.mark.parametrize("scales", [[], [1.0], [0.5, -0.1]])
def test_impossible_scales_are_refused(phase_of: Phases, scales: list[float]) -> None:
    """Scales lie between 0 and 1: the full merge was refused already."""
    with pytest.raises(ConfigError, match="scales"):
        phase_of(recover={"scale-search": {"scales": scales}})


def test_the_undo_is_kept_where_the_run_says(phase_of: Phases) -> None:
    """A proposal of the search keeps the old weights on disk where the run does."""
    found: Any = tries(phase_of(recover={"scale-search": True}, run={"undo": "disk"}))
    assert {r.proposal.undo for r in found} == {"disk"}
