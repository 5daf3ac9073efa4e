"""Baseline scores are measured once per base and probe, and never reused where something differs."""

from __future__ import annotations

import json

import pytest

from mgk_core.host.hooks import Hooks
from mgk_core.record.ledger import read_ledger
from mgk_core.run import baseline_cache
from mgk_core.run.runner import run_pipeline

FEW = [
    "run.threads=1", "defaults.train.steps=2", "defaults.gate.min-gain=false", "defaults.data.items=16",
]  # fmt: skip


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Keep every score, however fast, in an empty cache; return the list of probes that are measured."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baseline_cache, "WORTH", 0.0)
    found = []
    evaluate = Hooks.evaluate

    def counted(self, ctx, probe):
        found.append(probe.name)
        return evaluate(self, ctx, probe)

    monkeypatch.setattr(Hooks, "evaluate", counted)
    return found


def _run(tmp_path, name, measured, *overrides):
    measured.clear()
    run_pipeline(
        "textmodel",
        out=tmp_path / name,
        overrides=[*FEW, *overrides],
        until="plain_text",
    )
    return len(measured) - 3  # three probes after the phase are measured in any case


def test_a_second_run_measures_no_baseline_and_has_the_same_bits(tmp_path, measured):
    """The row is read, item by item as it was, and everything after it comes out the same."""
    assert _run(tmp_path, "a", measured) == 3
    assert _run(tmp_path, "b", measured) == 0
    rows = [json.loads((tmp_path / r / "base/scores.json").read_text()) for r in "ab"]
    assert rows[0] == rows[1]
    assert read_ledger(tmp_path / "a").head == read_ledger(tmp_path / "b").head


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (
            "phases.mcq.optimizer.lr=0.002",
            0,
        ),  # a phase's training does not touch the untouched base
        ("phases.mcq.data.seed=99", 1),  # other items of one probe
        ("defaults.evaluate.limit=8", 3),  # fewer items of each
        ("base.seed=3", 3),  # other weights
        ("run.seed=5", 3),
        ("run.reuse_baseline=false", 3),
    ],
)
def test_what_decides_a_score_decides_whether_it_is_reused(
    tmp_path, measured, change, again
):
    """Only a probe whose score could differ is measured again."""
    _run(tmp_path, "a", measured)
    assert _run(tmp_path, "b", measured, change) == again


def test_a_damaged_file_is_measured_again(tmp_path, measured):
    """A flipped digit, half a file and a file that is not JSON are all noticed."""
    _run(tmp_path, "a", measured)
    files = sorted((tmp_path / "cache/baseline").iterdir())
    assert len(files) == 3
    text = files[0].read_text()
    digit = text.index('"value": ') + len('"value": ')
    files[0].write_text(
        text[:digit] + ("1" if text[digit] != "1" else "2") + text[digit + 1 :]
    )
    files[1].write_bytes(files[1].read_bytes()[:40])
    files[2].write_text("[]")
    assert _run(tmp_path, "b", measured) == 3


def test_what_was_fast_to_measure_is_not_kept(tmp_path, measured, monkeypatch):
    """A file costs more than a score that takes milliseconds."""
    monkeypatch.setattr(baseline_cache, "WORTH", 3600.0)
    _run(tmp_path, "a", measured)
    assert not (tmp_path / "cache/baseline").exists()


def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path, measured, monkeypatch
):
    """A file where the directory should be: the run is as it would be without a cache."""
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "blocked"))
    assert _run(tmp_path, "a", measured) == 3
