"""The Korean medical pipeline: declared whole, and run from start to end on the tiny base."""

import json

import pytest

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.host.manager import load_plugins
from mgk_core.run.runner import run_pipeline

FEW = {f"phases.{name}.train.steps": 2 for name in ("plain_text", "dictionary", "mcq")}
SMALL = (
    FEW
    | {
        "base.id": "tiny-gemma",
        "run.threads": 1,
        "run.save_model": False,
        "defaults.evaluate.limit": 4,
        "defaults.gate.min-gain": False,  # two steps on random weights teach nothing that could be told from noise
    }
)


def test_the_pipeline_resolves():
    """Every key is known, the phases stand in their order, and each names its own kind of data."""
    config = resolve(load_tree("korean-medical"), load_plugins().registry).config
    assert [(p.name, p.data.type) for p in config.phases] == [
        ("plain_text", "text"),
        ("dictionary", "dictionary"),
        ("mcq", "mcq"),
    ]
    assert config.base.id == "gemma-3-270m-q4"


def test_no_phase_trains_or_selects_on_test():
    """Train, dev and test of a phase are three files; rows are measured on test, steps chosen on dev."""
    config = resolve(load_tree("korean-medical"), load_plugins().registry).config
    for phase in config.phases:
        assert len({phase.data.train, phase.data.dev, phase.data.test}) == 3
        assert phase.data.train.endswith("train.jsonl")
        assert phase.evaluate.split == "test"


@pytest.mark.slow
def test_it_runs_from_start_to_end_on_the_tiny_base(tmp_path, monkeypatch):
    """Row 0 and a row after each phase hold every probe; generated answers stand in the first and last row only."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    run_pipeline("korean-medical", out=tmp_path / "run", overrides=SMALL)
    table = json.loads(
        (tmp_path / "run" / "retention.json").read_text(encoding="utf-8")
    )
    assert [r["name"] for r in table["rows"]] == [
        "base",
        "plain_text",
        "dictionary",
        "mcq",
    ]
    taught = {p["name"]: p["phase"] for p in table["probes"]}
    assert taught == {
        "text": "plain_text",
        "base-ko": "base",
        "base-en": "base",
        "dictionary": "dictionary",
        "dictionary-margin": "dictionary",
        "dictionary-accuracy": "dictionary",
        "dictionary-generated": "dictionary",
        "mcq": "mcq",
        "mcq-margin": "mcq",
        "mcq-accuracy": "mcq",
        "mcq-generated": "mcq",
    }
    for column, name in enumerate(taught):
        measured = [row[column] is not None for row in table["R"]]
        assert measured == (
            [True, False, False, True] if name.endswith("-generated") else [True] * 4
        ), name
