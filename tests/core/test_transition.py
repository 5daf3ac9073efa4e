"""The phase boundary: every branch of it, with gates that really fire."""

import json

import pytest
import torch
from attrs import evolve

from mgk_core.contract.adapter import state_of
from mgk_core.contract.errors import ConfigError, GateRefused, Interrupted, MergeError
from mgk_core.contract.files import read_tensors
from mgk_core.host.hooks import Hooks
from mgk_core.model.digest import base_digest, tensors_digest
from mgk_core.record.ledger import read_ledger
from mgk_core.run.runner import resume_run, run_phase

REFUSING = {
    "phases.medical_dictionary.gate": {"max-drop": {"absolute": 0.0, "stderrs": 0.0}}
}


def entry(result, phase):
    return next(p for p in result.ledger.phases if p.phase == phase)


def test_three_phases_commit_and_the_ledger_chains_them(small):
    """Each phase's base is its predecessor's merged weights, and the last one's are the model's."""
    result = small()
    base = result.ledger.base
    for phase in result.ledger.phases:
        assert phase.result == "committed"
        assert phase.base == base
        assert phase.merged != base
        base = phase.merged
    assert result.finished
    assert result.ledger.model == base
    assert (
        tensors_digest(read_tensors(result.directory / "model" / "model.safetensors"))
        == base
    )


def test_two_runs_of_one_seed_are_bit_identical_and_another_seed_is_not(small):
    """Same seed, same device: same digests everywhere in the ledger."""
    one, two, other = small("a"), small("b"), small("c", run__seed=5)
    digests = [
        [(p.base, p.adapter, p.merged) for p in r.ledger.phases]
        for r in (one, two, other)
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_refusal_without_recovery_rolls_back_and_stops(small, tmp_path):
    """Exit by GateRefused; the base is as before the phase; adapter and evidence are on disk."""
    with pytest.raises(GateRefused, match=r"medical_dictionary.*max-drop"):
        small(**REFUSING)
    ledger = read_ledger(tmp_path / "run")
    assert [p.result for p in ledger.phases] == ["committed", "rolled_back"]
    refused = ledger.phases[1]
    assert refused.merged == refused.base == ledger.phases[0].merged
    assert refused.attempts[-1].refusals[0].evidence
    assert (
        tmp_path / "run/phases/1-medical_dictionary/adapter/state.safetensors"
    ).exists()
    assert not (tmp_path / "run/model").exists()


def test_a_rolled_back_run_says_how_to_go_on(small, tmp_path):
    """Resume does not try the refused phase again silently; it names the way."""
    with pytest.raises(GateRefused):
        small(**REFUSING)
    with pytest.raises(Exception, match="mgk phase"):
        resume_run(tmp_path / "run")


def test_scale_search_merges_a_part(small):
    """Where the whole delta is refused, smaller scales are tried in order and on record."""
    gate = {
        "phases.medical_dictionary.gate": {
            "max-drop": {"absolute": 4.0, "stderrs": 0.0}
        }
    }
    result = small(
        **gate,
        **{
            "phases.medical_dictionary.recover": {
                "scale-search": {"scales": [0.6, 0.2, 0.02]}
            }
        },
    )
    found = entry(result, "medical_dictionary")
    assert found.result == "committed"
    assert found.scale in (0.6, 0.2, 0.02)
    assert [a.method for a in found.attempts] == ["scale-search"] * len(found.attempts)
    assert found.attempts


def test_keeping_apart_leaves_the_base_and_marks_the_row(small):
    """The next phase starts without the adapter; its own scores are those of the live model."""
    result = small(
        **REFUSING, **{"phases.medical_dictionary.recover": {"keep-apart": True}}
    )
    found = entry(result, "medical_dictionary")
    assert found.result == "kept_apart"
    assert found.merged == found.base
    assert entry(result, "mcq").base == found.base
    row = next(r for r in result.retention["rows"] if r["name"] == "medical_dictionary")
    assert row["mark"] == "kept apart"


def test_training_on_comes_back_to_the_gate(small):
    """train-on runs further steps on the same adapter, then the transition again."""
    seen = []
    recover = {
        "phases.medical_dictionary.recover": {
            "train-on": {"steps": 5},
            "keep-apart": True,
        }
    }
    result = small(**REFUSING, **recover, sink=seen.append)
    steps = [
        e["step"]
        for e in seen
        if e["event"] == "step" and e["phase"] == "medical_dictionary"
    ]
    assert max(steps) == 17
    assert [a.method for a in entry(result, "medical_dictionary").attempts] == [
        "train-on",
        "keep-apart",
    ]


def test_stop_rolls_back_at_once(small):
    """An explicit stop entry ends the recoveries."""
    with pytest.raises(GateRefused):
        small(
            **REFUSING,
            **{"phases.medical_dictionary.recover": {"stop": True, "keep-apart": True}},
        )


def test_methods_that_a_recovery_would_add_are_checked_before_the_run(small):
    """A misspelt method inside train-on is found with the configuration, not hours later."""
    with pytest.raises(ConfigError, match="unknown retention type 'nonsense'"):
        small(**{"phases.mcq.recover": {"train-on": {"retention": {"nonsense": {}}}}})


def test_a_merge_that_does_not_compute_what_ran_is_refused(
    small, tmp_path, monkeypatch
):
    """merged_weight off by one percent of the delta: verification refuses and the base is restored."""
    attach, build, built = Hooks.attach_adapter, Hooks.build_model, []

    def keep(self, spec, device):
        built.append(build(self, spec, device))
        return built[-1]

    def wrong(self, model, spec, name):
        adapter = attach(self, model, spec, name)
        right = adapter.merged_weight
        adapter_class = type(adapter)

        class Wrong(adapter_class):
            def merged_weight(self, name, weight, rows=None):
                return weight + 1.01 * (right(name, weight, rows) - weight)

            def factors(self, name):
                return None

        adapter.__class__ = Wrong
        return adapter

    monkeypatch.setattr(Hooks, "build_model", keep)
    monkeypatch.setattr(Hooks, "attach_adapter", wrong)
    with pytest.raises(MergeError, match="plain_text.*merged_weight"):
        small()
    ledger = read_ledger(tmp_path / "run")
    assert ledger.phases == []
    assert base_digest(built[0].model) == ledger.base
    assert state_of(built[0].model).adapters == []
    assert not (tmp_path / "run/phases/0-plain_text/adapter").exists()


def test_a_rule_that_goes_on_to_change_weights_is_held_against_live_before(
    small, monkeypatch
):
    """It asks for it when the weights compute what was live; that is on record, and nothing is compared after."""
    original = Hooks.merge

    def further(self, model, adapter, proposal, spec):
        report = original(self, model, adapter, proposal, spec)
        proposal.verify()
        with torch.no_grad():
            for target in adapter.targets().values():
                target.parameter.mul_(0.9)  # far beyond what rounding explains
        return evolve(report, exact=False)

    monkeypatch.setattr(Hooks, "merge", further)
    phases = small().ledger.phases
    assert [(p.exact, p.last) for p in phases] == [
        (False, False),
        (False, False),
        (False, True),
    ]
    assert all(0 < p.verify["error"] <= p.verify["bound"] for p in phases)


def test_until_stops_and_resume_goes_on_to_the_same_end(small, tmp_path):
    """A run in two sittings ends in the same digests as one in one."""
    whole = small("whole")
    part = small("part", until="plain_text")
    assert not part.finished
    assert [p.phase for p in part.ledger.phases] == ["plain_text"]
    rest = resume_run(tmp_path / "part")
    assert [p.merged for p in rest.ledger.phases] == [
        p.merged for p in whole.ledger.phases
    ]


def test_an_interrupt_between_steps_is_resumable(small, tmp_path):
    """A stop in the middle of a phase raises Interrupted; resume ends in the same bits."""
    import os
    import signal

    whole = small("whole")

    def interrupt(event):
        if (
            event["event"] == "step"
            and event["phase"] == "medical_dictionary"
            and event["step"] == 10
        ):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="mgk resume"):
        small("cut", sink=interrupt)
    rest = resume_run(tmp_path / "cut")
    assert [p.merged for p in rest.ledger.phases] == [
        p.merged for p in whole.ledger.phases
    ]


def test_one_phase_again_with_other_settings_in_a_new_directory(small, tmp_path):
    """mgk phase RUN PHASE --out: predecessors are copied and not trained again."""
    small()
    seen = []
    result = run_phase(
        tmp_path / "run",
        "mcq",
        out=tmp_path / "again",
        overrides={"phases.mcq.optimizer.lr": 1e-3},
        sink=seen.append,
    )
    assert {e["phase"] for e in seen if e["event"] == "step"} == {"mcq"}
    first = read_ledger(tmp_path / "run")
    assert [p.merged for p in result.ledger.phases[:2]] == [
        p.merged for p in first.phases[:2]
    ]
    assert result.ledger.phases[2].merged != first.phases[2].merged


def test_the_next_phase_of_an_unfinished_run_runs_in_place(small, tmp_path):
    """mgk phase on a run stopped by --until continues that run."""
    small(until="plain_text")
    result = run_phase(tmp_path / "run", "medical_dictionary")
    assert result.directory == tmp_path / "run"
    assert [p.phase for p in result.ledger.phases] == [
        "plain_text",
        "medical_dictionary",
    ]


def test_live_rows_are_told_where_asked_for(small):
    """evaluate.live scores every probe before the merge as well, and fp32 merging changes next to nothing."""
    seen = []
    small(sink=seen.append, phases__mcq__evaluate__live=True)
    rows = {
        e["row"]: {s["probe"]: s["value"] for s in e["scores"]}
        for e in seen
        if e["event"] == "evaluation"
    }
    for probe, value in rows["mcq"].items():
        assert rows["mcq (live)"][probe] == pytest.approx(value, rel=1e-4)


def test_retention_json_holds_what_was_measured(small, tmp_path):
    """R has a row per phase and one for the base; figures agree with the matrix."""
    small()
    table = json.loads((tmp_path / "run" / "retention.json").read_text())
    assert [r["name"] for r in table["rows"]] == [
        "base",
        "plain_text",
        "medical_dictionary",
        "mcq",
    ]
    j = [p["name"] for p in table["probes"]].index("plain_text")
    assert table["gain"]["plain_text"] == pytest.approx(
        table["R"][0][j] - table["R"][1][j]
    )
    assert table["base_measured"] is False
