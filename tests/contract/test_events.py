"""The table of events is what a run sends."""

from __future__ import annotations

from mgk_core.contract.events import EVENTS
from mgk_core.record.events import KEPT
from mgk_core.run.runner import run_pipeline
from mgk_core.testing.observers import STREAM


def test_a_run_sends_what_the_table_lists(tmp_path):
    """Training, dev, checkpoints, drift, a gate: no event and no field is missing there."""
    seen = []
    settings = {
        "run.threads": 1,
        "defaults.gate.min-gain": False,
        "defaults.train.eval_every": 20,
        "defaults.train.checkpoint_steps": 20,
        "defaults.observe.alarm": {"limit": 1e-9},
        "phases.plain_text.gate.threshold": {"limit": 17.0},
        "phases.plain_text.recover.keep-apart": True,
    }
    run_pipeline(
        "textmodel",
        out=tmp_path / "run",
        overrides=settings,
        until="plain_text",
        sink=seen.append,
    )
    for event in seen:
        table = EVENTS[event["event"]].fields
        assert "*" in table or set(event) - {"event"} <= set(table), event
    assert {
        "load",
        "phase",
        "step",
        "dev",
        "checkpoint",
        "drift",
        "merge",
        "verify",
        "gate",
    } <= {e["event"] for e in seen}


def test_what_metrics_jsonl_keeps_is_in_the_table():
    """The names that were kept before there was a table, and no other."""
    assert set(KEPT) == {
        "step", "evaluation", "phase", "merge", "gate", "alarm", "drift", "time", "dev", "early_stop",
    }  # fmt: skip


def test_the_kit_feeds_observers_events_of_the_table():
    """Its stream has fields that a run sends, but for the event that no mgk knows yet."""
    for event in STREAM[:-1]:
        assert set(event) - {"event"} <= {*EVENTS[event["event"]].fields}, event
