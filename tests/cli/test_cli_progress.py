"""Progress output: what is printed where the output is not a terminal, and the small tables of scores."""

import io
import os
import re
import subprocess
import sys
import time

import pytest
from rich.cells import cell_len

from mgk_cli import progress
from mgk_cli.console import make
from mgk_cli.event_lines import EventLines
from mgk_cli.formatting import shorten
from mgk_cli.progress import Lines
from mgk_cli.score_lines import score_lines
from mgk_cli.status import Status
from mgk_core.contract.progress import activity

LOAD = {"event": "part", "part": "load"}
SCORING = {
    "event": "progress", "what": "scoring kmmlu (2 of 9)", "done": 30, "total": 120, "unit": "items",
    "seconds": 15.0,
}  # fmt: skip


def test_a_status_knows_how_far_it_is_and_how_long_it_takes():
    """30 of 120 in 15 seconds: 45 are left; what follows the loop has no known end."""
    status = Status("starting")
    status.update(LOAD)
    assert status.line().startswith("loading  0:0")
    status.update(SCORING)
    assert status.line() == "scoring kmmlu (2 of 9)  30/120 items  0:45 left"
    status.update({**SCORING, "done": 120})
    assert (status.what, status.total) == ("scoring kmmlu (2 of 9)", None)
    status.update({"event": "activity", "what": "evaluation"})
    assert status.line().startswith("scoring  0:0")


def test_a_step_event_makes_a_bar_of_steps():
    """The phase's name, steps of all steps, loss, pace and time left."""
    status = Status("starting")
    status.update(
        {"event": "step", "phase": "mcq", "step": 10, "steps": 40, "loss": 2.5, "per_second": 1200.0,
         "seconds": 5.0, "unit": "tokens", "rss": 10**9}
    )  # fmt: skip
    assert (status.what, status.done, status.total) == ("mcq", 10, 40)
    assert status.figures == ["loss 2.500", "1.20k tokens/s", "1.0 GB", "0:15 left"]


def test_training_moves_between_two_step_events():
    """The count comes with every step, the figures with the last step event."""
    status = Status("starting")
    status.update({"event": "phase", "phase": "mcq", "state": "enter", "index": 0})
    counted = {
        "event": "progress",
        "what": "training",
        "total": 40,
        "unit": "steps",
        "seconds": 9.0,
    }
    status.update({**counted, "done": 3})
    assert status.line() == "mcq  3/40 steps"
    status.figures = ["loss 2.500"]
    status.update({**counted, "done": 4})
    assert status.line() == "mcq  4/40 steps  loss 2.500"


def test_a_pipe_gets_a_line_now_and_then_and_no_control_characters():
    """The status is printed by a clock, also while nothing reports; never more often than it says."""
    out = io.StringIO()
    with Lines(make(out), "loading", every=0.05) as lines:
        lines(SCORING)
        time.sleep(0.18)
    printed = out.getvalue()
    assert 1 <= printed.count("scoring kmmlu (2 of 9)  30/120 items  0:45 left") <= 4
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)


@pytest.mark.slow
def test_a_command_that_waits_keeps_its_result_clean(finished_run):
    """``mgk verify --weights`` in a pipe with NO_COLOR: plain text, the result last."""
    done = subprocess.run(
        [sys.executable, "-m", "mgk_cli", "verify", str(finished_run), "--weights"],
        capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.stdout.rstrip().endswith("identical to the ledger")
    assert "\x1b" not in done.stdout + done.stderr


def scores(**values):
    """Return scores as an ``evaluation`` event carries them."""
    return {
        name: {"probe": name, "value": value, "higher_is_better": False}
        for name, value in values.items()
    }


def test_few_scores_stand_in_a_row():
    """Probes across, the row's name in front, numbers below their names."""
    header, row = score_lines("phase one", {}, scores(a=1.5, longer_name=22.0), 80)
    assert header.split() == ["scores", "a", "longer_name"]
    assert row.split() == ["phase", "one", "1.500", "22.00"]
    assert cell_len(header) == cell_len(row)


def test_many_scores_stand_below_each_other_and_keep_their_numbers():
    """One line a probe; long names are shortened in the middle, and lower is better by the change."""
    names = [f"a-rather-long-name-of-a-probe-{i}" for i in range(8)]
    found = list(
        score_lines(
            "p", dict.fromkeys(names, 2.0), scores(**dict.fromkeys(names, 1.5)), 60
        )
    )
    assert found[0].split() == ["scores", "before", "after", "better", "by"]
    assert all(line.split()[1:] == ["2.000", "1.500", "+0.500"] for line in found[1:])
    assert all(cell_len(line) <= 60 for line in found)
    assert len({line.split()[0] for line in found[1:]}) == 8


def test_shortening_keeps_both_ends_and_counts_wide_characters():
    """Korean characters take two cells; what fits is left alone."""
    assert shorten("korean-medical-generated", 12) == "korean…rated"
    assert shorten("short", 12) == "short"
    assert cell_len(shorten("한국어의학객관식문제", 9)) <= 9


def test_a_wait_has_its_name_between_two_loops(capsys, monkeypatch):
    """After a loop that named itself has ended, the command's own name is shown again."""
    monkeypatch.setattr(progress, "HEARTBEAT", 0.05)
    with progress.waiting("planning"):
        with activity("loading a base"):
            time.sleep(0.15)
        time.sleep(0.15)
    lines = capsys.readouterr().err
    assert "loading a base" in lines
    assert "planning" in lines
    assert "working" not in lines


def test_an_objectives_figures_are_printed_from_first_to_last():
    """After the line about the training, each figure of the objective with its first and last mean."""
    step = {
        "event": "step", "phase": "p", "steps": 20, "per_second": 3.0, "unit": "pairs", "rss_peak": 10**9,
    }  # fmt: skip
    lines = EventLines(80)
    first = {"step": 10, "loss": 0.69, "figures": {"rewards/margins": 0.0}}
    last = {"step": 20, "loss": 0.5, "figures": {"rewards/margins": 0.25}}
    for figures in (first, last):
        assert list(lines(step | figures)) == []
    told, detail = (line.text for line in lines.trained())
    assert told.startswith("trained 20 steps: loss 0.6900 → 0.5000")
    assert "pairs/s" in told
    assert detail == "rewards/margins 0 → 0.250"
