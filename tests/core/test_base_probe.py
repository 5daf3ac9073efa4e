"""What a language model knew before is measured by default, and what a pipeline's own probes are bound to."""

import json

import pytest

from mgk_core.config.resolve import load_tree
from mgk_core.contract.errors import ConfigError
from mgk_core.run.runner import run_pipeline
from mgk_core.run.setup import prepare
from mgk_core.tools.plan import make_plan

CONFIG = """
name = "small"
[base]
type = "hf"
id = "tiny-gemma"
[run]
threads = 1
[defaults]
optimizer = {type = "adamw", lr = 0.01}
train = {steps = 2, batch_size = 2}
adapter = {type = "lora", rank = 2, alpha = 6, targets = ["*q_proj"]}
[phases.one.data]
type = "text"
length = 32
train = "train.jsonl"
test = "train.jsonl"
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"text": f"글 {i}은 짧다. " * 3}) for i in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "small.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path / "small.toml"


def planned(config, **sets):
    return make_plan(prepare(load_tree(file=config, overrides=sets)))


def test_the_base_is_measured_where_no_probe_does(config, tmp_path):
    """A small probe of shipped texts is added, planned with a note, and kept in the matrix."""
    plan = planned(config)
    assert [(p.name, p.phase, p.items) for p in plan.probes] == [
        ("base-text", "base", 16)
    ]
    assert sum("base-text" in warning for warning in plan.warnings) == 1
    run_pipeline(None, out=tmp_path / "run", config=config)
    table = json.loads((tmp_path / "run" / "retention.json").read_text())
    assert table["base_measured"]
    assert {p["name"]: p["phase"] for p in table["probes"]} == {
        "text": "one",
        "base-text": "base",
    }


@pytest.mark.parametrize(
    "sets",
    [
        {"run.base_probe": False},
        {"phases.one.data.base_probes": {"mine": "train.jsonl"}},
        {"probes.mine": {"type": "text", "source": "train.jsonl"}},
    ],
)
def test_it_can_be_left_out_and_gives_way(config, sets):
    """With the setting off, or a base probe of the user's own, none is added."""
    plan = planned(config, **sets)
    names = [p.name for p in (*plan.probes, *plan.phases[0].probes)]
    assert "base-text" not in names
    assert not any("base-text" in warning for warning in plan.warnings)
    assert ("mine" in names) == ("run.base_probe" not in sets)


def test_it_is_measured_on_the_split_that_makes_the_row(config):
    """A pipeline that is measured on dev measures the base there too."""
    plan = planned(config, **{"defaults.evaluate.split": "dev"})
    assert plan.probes[0].split == "dev"


def test_a_probe_of_the_pipeline_belongs_to_the_phase_it_names(config):
    """`phase` binds a probe, `limit` cuts it, and a phase that does not exist is an error with its key."""
    table = {"type": "text", "source": "train.jsonl", "phase": "one", "limit": 3}
    plan = planned(config, **{"probes.mine": table})
    found = {p.name: (p.phase, p.items) for p in plan.probes}
    assert found["mine"] == ("one", 3)
    with pytest.raises(ConfigError, match=r"probes\.mine\.phase"):
        planned(config, **{"probes.mine": {**table, "phase": "two"}})
