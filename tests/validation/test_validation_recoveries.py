"""What is tried after a refusal, in which order, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

import mgk
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import ConfigError
from mgk_core.contract.outcome import Proposal, Recovery
from mgk_validation.plugin import mgk_recover
from mgk_validation.specs import TrainOnSpec

Phases = Callable[..., PhaseContext]


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
    assert found[0].evidence == {"scale": 0.6, "proposed": 1.0}


def test_training_on_brings_its_methods(phase_of: Phases) -> None:
    """Steps, times and the added methods are those of the entry."""
    ctx = phase_of(recover={"train-on": {"steps": 7, "times": 2}})
    found = tries(ctx)
    assert [(r.action, r.steps) for r in found] == [("train", 7), ("train", 7)]


def test_added_methods_come_as_tables_with_their_types(phase_of: Phases) -> None:
    """What the entry's ``retention`` says is handed on, each table with the type that names it."""
    spec = TrainOnSpec(
        type="train-on",
        steps=5,
        retention={"replay": {"share": 0.1}, "drift-guard": True, "ewc": False},
    )
    found = mgk_recover(ctx=phase_of(), tried=[], spec=spec)
    assert found is not None
    assert found.retention == (
        {"type": "replay", "share": 0.1},
        {"type": "drift-guard"},
    )


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


def test_a_search_keeps_the_rest_of_the_proposal(phase_of: Phases) -> None:
    """Scales are factors on the scale that was proposed, and transforms and undo stay as they are."""
    ctx = phase_of(recover={"scale-search": {"scales": [0.5, 0.25]}})
    ctx.proposal = Proposal(scale=0.8, transforms=(Nothing(),), undo="disk")
    tried: list[Recovery] = []
    for expected in (0.4, 0.2):
        found = mgk_recover(ctx=ctx, tried=tried, spec=ctx.phase.recover[0])
        assert found is not None
        assert found.proposal is not None
        assert found.proposal.scale == pytest.approx(expected)
        assert found.proposal.transforms == ctx.proposal.transforms
        assert found.proposal.undo == "disk"
        tried.append(found)
        ctx.proposal = found.proposal
    assert mgk_recover(ctx=ctx, tried=tried, spec=ctx.phase.recover[0]) is None


class Nothing:
    """A transform that changes nothing."""

    name = "nothing"

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return the delta."""
        return delta


def test_a_real_refusal_is_merged_smaller(tmp_path: Path) -> None:
    """In a run, a phase that forgets too much is merged at the first scale that forgets little enough."""
    gate = {"min-gain": False, "max-drop": {"absolute": 4.0, "probes": ["plain_text"]}}
    result = mgk.run(
        "textmodel",
        out=tmp_path / "run",
        until="medical_dictionary",
        set={
            "run.threads": 1,
            "phases.medical_dictionary.gate": gate,
            "phases.medical_dictionary.recover": {
                "scale-search": {"scales": [0.9, 0.5, 0.1]}
            },
        },
    )
    entry = result.ledger.phases[1]
    scales = [a.evidence["scale"] for a in entry.attempts]
    assert entry.result == "committed"
    assert scales == [0.9, 0.5, 0.1][: len(scales)]
    assert entry.scale == scales[-1]
    rows = result.retention["R"]
    assert rows[2][0] <= rows[1][0] + 4.0
    assert rows[2][1] < rows[1][1]


def test_training_on_with_nothing_to_add_ends_in_the_next_entry(tmp_path: Path) -> None:
    """In a run, further steps do not mend what forgot; the adapter is then kept apart and the run goes on."""
    result = mgk.run(
        "textmodel",
        out=tmp_path / "run",
        set={
            "run.threads": 1,
            "phases.medical_dictionary.gate": {
                "min-gain": False,
                "max-drop": {"absolute": 0.0, "stderrs": 0.0},
            },
            "phases.medical_dictionary.recover": {
                "train-on": {"steps": 3},
                "keep-apart": True,
            },
        },
    )
    assert [p.result for p in result.ledger.phases] == [
        "committed",
        "kept_apart",
        "committed",
    ]
    assert [a.method for a in result.ledger.phases[1].attempts] == [
        "train-on",
        "keep-apart",
    ]
