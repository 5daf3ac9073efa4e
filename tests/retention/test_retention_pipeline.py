"""The methods in real runs: three phases of the reference network, through the runner."""

import json

import pytest
import torch

import mgk
from mgk_core.contract.errors import Interrupted
from mgk_core.contract.files import read_tensors
from mgk_core.contract.pipeline import Phase, Pipeline
from mgk_core.run.runner import resume_run, run_pipeline


def pipeline(retention, **slots):
    """Three teachers whose inputs overlap, so that plain merging forgets; no run takes a second."""
    phases = tuple(
        Phase(
            name=name,
            data={
                "type": "teacher",
                "seed": seed,
                "size": 128,
                "items": 64,
                "probe": name,
            },
            optimizer={"type": "adamw", "lr": 2e-3},
            train={"steps": 60, "batch_size": 16, "log_every": 20},
        )
        for name, seed in (("a", 11), ("b", 12), ("c", 13))
    )
    defaults = {
        "adapter": {"type": "lora", "rank": 8, "alpha": 16, "targets": ["layer1", "layer2", "layer3"]},
        "step": {"type": "standard"}, "merge": {"type": "exact"}, "retention": retention, **slots,
    }  # fmt: skip
    return Pipeline(
        name="three",
        base={"type": "reference"},
        phases=phases,
        defaults=defaults,
        run={"threads": 1},
    )


def outcome(tmp_path, retention, **slots):
    """Run, and return (gain kept of phase a, gain of phase c as a share of row 0, the run)."""
    result = mgk.run(pipeline(retention, **slots), out=tmp_path / "run")
    table = json.loads((result.directory / "retention.json").read_text())
    zero = table["R"][0][2]
    return table["gain_kept"]["a"], table["gain"]["c"] / zero, result.directory


@pytest.fixture(scope="module")
def naive(tmp_path_factory):
    """What plain merging keeps and learns."""
    return outcome(tmp_path_factory.mktemp("naive"), {"naive": {}})


def test_naive_forgets_and_is_labelled(naive):
    """Plain merging gives back part of phase a's gain, and the ledger says that nothing protected it."""
    kept, gained, run = naive
    assert kept < 0.9
    assert gained > 0.3
    notes = [
        n
        for entry in json.loads((run / "ledger.json").read_text())["phases"]
        for n in entry["notes"]
    ]
    assert notes.count("naive: no protection against forgetting") == 3
    assert not list(run.glob("phases/*/statistics.safetensors"))


@pytest.mark.parametrize(
    "retention",
    [
        {"drift-guard": {}},
        {"drift-guard": {"sketch": 0}},
        {"replay": {"share": 0.25}},
        {"covariance-merge": {"sketch": 0, "strength": 0.1}},
        {
            "drift-guard": {"strength": 3.0},
            "replay": {"share": 0.25},
            "covariance-merge": {"strength": 0.01},
        },
    ],
    ids="+".join,
)
def test_methods_keep_what_plain_merging_loses(tmp_path, naive, retention):
    """Alone and combined, each keeps at least half of the gain that plain merging gave back, and still learns."""
    kept, gained, run = outcome(tmp_path, retention)
    assert 1 - kept <= 0.5 * (1 - naive[0])
    assert gained >= 0.5 * naive[1]
    assert (run / "phases/0-a/statistics.safetensors").exists()
    assert not (run / "phases/2-c/statistics.safetensors").exists()


@pytest.mark.parametrize("name", ["ewc", "o-lora", "designed-a", "self-distillation"])
def test_methods_for_comparison_run(tmp_path, name):
    """Each goes through three phases, and the merged model still learns the last one."""
    options = {"distance": "squared"} if name == "self-distillation" else {}
    _, gained, _ = outcome(tmp_path, {name: options})
    assert gained > 0.05


def test_alarms_are_in_the_metrics(tmp_path):
    """The observer's figures stand in metrics.jsonl; from the second phase on there is a drift to tell."""
    _, _, run = outcome(tmp_path, {"naive": {}}, observe={"alarm": {"limit": 1e-6}})
    events = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    drifts = [e for e in events if e["event"] == "drift"]
    assert [(e["phase"], e["drift"] is None) for e in drifts if e["step"] == 20] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]
    assert {e["phase"] for e in events if e["event"] == "alarm"} == {"b", "c"}


def test_covariance_is_a_recovery(tmp_path):
    """A gate refuses the plain merge of phase b; the covariance-aware one passes and is on record."""
    slots = {
        "gate": {"max-drop": {"relative": 0.05, "stderrs": 0.0}},
        "recover": {"covariance": {"strengths": [1.0, 100.0]}},
    }
    _, _, run = outcome(tmp_path, {"naive": {}}, **slots)
    entries = json.loads((run / "ledger.json").read_text())["phases"]
    tried = [attempt["method"] for entry in entries for attempt in entry["attempts"]]
    assert "covariance" in tried
    assert any(
        t.startswith("covariance(") for entry in entries for t in entry["transforms"]
    )


def stop_after(steps):
    """A sink that raises SIGTERM's effect once a phase has logged so many steps."""
    seen = []

    def sink(event):
        if event["event"] == "step" and event["phase"] == "b":
            seen.append(event["step"])
            if event["step"] >= steps and len(seen) == steps // 20:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

    return sink


@pytest.mark.parametrize(
    "retention",
    [{"drift-guard": {}, "replay": {"share": 0.25}}, {"designed-a": {}}],
    ids="+".join,
)
def test_resumed_runs_end_in_the_same_bits(tmp_path, retention):
    """Stopped in the middle of phase b and resumed: the same merged weights as a run that was not."""
    whole = run_pipeline(pipeline(retention), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_pipeline(pipeline(retention), out=tmp_path / "stopped", sink=stop_after(40))
    resumed = resume_run(tmp_path / "stopped")
    assert [p.merged for p in resumed.ledger.phases] == [
        p.merged for p in whole.ledger.phases
    ]


def test_guard_refuses_nothing_but_remembers_little(tmp_path):
    """Sketched statistics of a phase are a small part of the model's bytes."""
    _, _, run = outcome(tmp_path, {"drift-guard": {"sketch": 4}})
    kept = read_tensors(run / "phases/0-a/statistics.safetensors")
    found = sum(t.numel() * t.element_size() for t in kept.values())
    # two sides of three layers, four bf16 columns each and a tail
    assert found == sum(2 * 4 * d + 4 for d in (64, 128, 128, 128, 128, 32))
    assert torch.isfinite(kept["retention/inputs/layer1.weight/factor"]).all()
