"""A run directory that is taken away while a process works on it: said as it is, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

LONG = "defaults.data.size=1000000"  # loading three of these takes seconds: time to take the directory away
ENDLESS = ["phases.mcq.train.steps=1000000", "phases.mcq.train.checkpoint_steps=500"]


def taken_away(run, elsewhere, moment, overrides, *, command="run"):
    """Take the directory away at the first event that ``moment`` knows; return (exit code, what was said)."""
    settings = [x for value in ["run.threads=1", *overrides] for x in ("--set", value)]
    given = (
        ["textmodel", "--out", str(run), *settings] if command == "run" else [str(run)]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", command, *given, "--json"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if moment(json.loads(line)):
            run.rename(elsewhere)
            break
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


def loads_data(event):
    return event["event"] == "load" and event["what"] == "data"


def trains_last(event):
    return event["event"] == "step" and event["phase"] == "mcq"


@pytest.mark.parametrize(
    ("moment", "overrides"),
    [(loads_data, [LONG]), (trains_last, ENDLESS)],
    ids=["loading", "training"],
)
def test_a_removed_run_directory_is_said_to_be_gone(tmp_path, moment, overrides):
    """An error of the environment that names it; it is not made anew with a part of the files."""
    run = tmp_path / "run"
    code, said = taken_away(run, tmp_path / "trash", moment, overrides)
    shutil.rmtree(tmp_path / "trash")
    assert code == 3
    assert f"{run}: the run directory is gone" in said
    assert "fault" not in said
    assert not run.exists()


def test_a_moved_run_goes_on_from_where_it_is(tmp_path):
    """What the message says: the directory holds a run, wherever it stands now."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    few = [f"phases.{p}.train.steps=3" for p in ("plain_text", "medical_dictionary")]
    gate = "defaults.gate.min-gain=false"
    taken_away(
        run,
        moved,
        trains_last,
        [
            "phases.mcq.train.steps=20000",
            "phases.mcq.train.checkpoint_steps=500",
            gate,
            *few,
        ],
    )
    code, said = taken_away(moved, run, trains_last, [], command="resume")
    assert code == 3
    assert f"{moved}: the run directory is gone" in said
    assert not moved.exists()
