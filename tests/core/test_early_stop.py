"""Early stopping by the loss on dev: when it ends, that it resumes to the same bits, and where it is shown."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from mgk_cli.main import cli
from mgk_core.contract.errors import ConfigError, Interrupted
from mgk_core.record.journal import open_journal
from mgk_core.record.ledger import read_ledger
from mgk_core.record.store import Store
from mgk_core.run.runner import resume_run

RESTLESS = {
    "phases__plain_text__optimizer__lr": 8e-3,  # so large that dev goes up and down
    "phases__plain_text__train__eval_every": 2,
    "phases__plain_text__train__patience": 2,
    "phases__plain_text__train__keep": "best",
    "phases__plain_text__train__checkpoint_steps": 1,
    "phases__plain_text__train__log_every": 5,
    "phases__plain_text__train__steps": 40,
}


def losses(run):
    """Return (step, loss on dev) of a run's first phase."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(e["step"], e["loss"]) for e in lines if e["event"] == "dev"]


def end(run):
    """Return what the first phase ended with."""
    entry = read_ledger(run).phases[0]
    return entry.adapter, entry.merged, entry.steps


@pytest.fixture
def stopped(small):
    """Run one phase that stops early."""
    return small(until="plain_text", **RESTLESS).directory


def test_it_ends_after_patience_evaluations_without_a_better_loss(stopped):
    """The last two are not better than the best before them; the one before those was."""
    found = losses(stopped)
    values = [loss for _, loss in found]
    waits = [0]
    for i, value in enumerate(values[1:], 1):
        waits.append(0 if value < min(values[:i]) else waits[-1] + 1)
    assert waits[-1] == 2
    assert max(waits[:-1]) == 1
    step, best = found[-1][0], found[-3]
    assert end(stopped)[2] == step < 40
    note = open_journal(Store(stopped)).last("early_stop")
    wanted = {"step": step, "steps": 40, "best_step": best[0], "best_loss": best[1]}
    assert wanted.items() <= note.items()


@pytest.mark.parametrize("event", ["dev", "early_stop", "checkpoint"])
def test_interrupted_anywhere_it_ends_in_the_same_bits(small, stopped, tmp_path, event):
    """While it waits, at the stop itself, and after the checkpoint that is written then."""
    last = end(stopped)[2]
    step = last - 2 if event == "dev" else last

    def pull(e):
        if (e["event"], e.get("step")) == (event, step):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        small(out="broken", until="plain_text", sink=pull, **RESTLESS)
    broken = tmp_path / "broken"
    resume_run(broken, until="plain_text")
    assert end(broken) == end(stopped)
    assert losses(broken) == losses(stopped)


def test_without_patience_it_trains_to_the_end(small):
    """The same settings otherwise."""
    settings = RESTLESS | {"phases__plain_text__train__patience": None}
    assert end(small(until="plain_text", **settings).directory)[2] == 40


def test_a_gain_below_min_delta_is_not_one(small):
    """With a demand that no step fulfils, the third evaluation ends it, and the best step is kept all the same."""
    settings = RESTLESS | {
        "phases__plain_text__train__min_delta": 1e6,
        "phases__plain_text__optimizer__lr": 1e-4,
    }
    run = small(until="plain_text", **settings).directory
    assert [step for step, _ in losses(run)] == [2, 4, 6]
    assert open_journal(Store(run)).last("early_stop")["best_step"] == 6


def test_it_is_shown(stopped):
    """`mgk show` says so, `--all` has the steps, `--json` the event's figures."""
    shown = CliRunner().invoke(cli, ["show", str(stopped)]).output
    step = end(stopped)[2]
    assert f"plain_text: early stop at step {step} of 40" in " ".join(shown.split())
    whole = CliRunner().invoke(cli, ["show", str(stopped), "--all"]).output
    assert f"{step}/40 (early stop" in whole


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"patience": 2}, "patience .*eval_every"),
        ({"eval_every": 2, "min_delta": 0.1}, "min_delta.*patience"),
        ({"eval_every": 2, "patience": 0}, "patience.*>= 1"),
    ],
    ids=str,
)
def test_settings_without_an_effect_are_refused(small, keys, message):
    """Before anything is run."""
    settings = {f"phases__plain_text__train__{k}": v for k, v in keys.items()}
    with pytest.raises(ConfigError, match=message):
        small(**settings)
