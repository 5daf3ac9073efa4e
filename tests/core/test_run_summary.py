"""Looking at a run directory: what it says, and what is not believed."""

import json
import shutil

import pytest

from mgk_cli.outcome import ending
from mgk_core.contract.errors import InputError, StoreError
from mgk_core.record.ledger import read_ledger
from mgk_core.tools.run_summary import look


def test_a_finished_run_is_told_whole(finished_run):
    """Status, phases with their ledger rows, training, times and memory, from the directory alone."""
    run = look(finished_run)
    assert (run.name, run.status, run.owner) == ("textmodel", "finished", None)
    assert [(p.name, p.state) for p in run.phases] == [
        ("plain_text", "committed"), ("medical_dictionary", "committed"), ("mcq", "committed"),
    ]  # fmt: skip
    assert [p.entry for p in run.phases] == read_ledger(finished_run).phases
    mcq = run.phases[2].training
    assert (mcq.step, mcq.steps, mcq.count, mcq.unit, mcq.skipped) == (
        125,
        125,
        2000,
        "samples",
        0,
    )
    assert mcq.first_loss > mcq.last_loss
    assert mcq.memory["rss_peak"] > 0
    assert {"load", "training", "merge", "evaluation", "save"} <= set(run.times)
    assert run.times["training"] == pytest.approx(
        sum(t.get("training", 0) for t in run.phase_times.values())
    )
    assert run.model == finished_run / "model"


def test_a_run_that_was_stopped_tells_what_is_to_come(half_run):
    """One phase committed, two waiting; the matrix has two rows."""
    run = look(half_run)
    assert run.status == "stopped"
    assert [p.state for p in run.phases] == ["committed", "waiting", "waiting"]
    assert [r["name"] for r in run.retention["rows"]] == ["base", "plain_text"]
    assert run.model is None


def test_a_line_of_metrics_that_does_not_read_is_left_out_and_noted(
    finished_run, tmp_path
):
    """Looking goes on; what was left out is named with its line."""
    shutil.copytree(finished_run, tmp_path / "run")
    file = tmp_path / "run/metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:-5]
    file.write_text("\n".join(lines) + "\n")
    run = look(tmp_path / "run")
    assert run.notes == (f"{file}:3: this line does not read and was left out",)


def test_a_changed_matrix_is_not_believed(finished_run, tmp_path):
    """retention.json is held against the journal before it is shown."""
    shutil.copytree(finished_run, tmp_path / "run")
    file = tmp_path / "run/retention.json"
    table = json.loads(file.read_text())
    table["R"][-1][0] = 0.0
    file.write_text(json.dumps(table))
    run = look(tmp_path / "run")
    assert run.retention == {}
    assert "is not what was written" in run.notes[0]


def test_a_damaged_journal_is_an_error_that_names_the_line(finished_run, tmp_path):
    """Without its record a run says nothing that can be trusted."""
    shutil.copytree(finished_run, tmp_path / "run")
    file = tmp_path / "run/journal.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = lines[1].replace('"n": 1', '"n": 7')
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(StoreError, match=r"journal.jsonl:2"):
        look(tmp_path / "run")


def test_a_ledger_that_the_journal_does_not_know_is_told(finished_run, tmp_path):
    """A journal that was cut short after a whole line reads well; what it says is not what stands there."""
    shutil.copytree(finished_run, tmp_path / "run")
    file = tmp_path / "run/journal.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    summary = look(tmp_path / "run")
    (note,) = (n for n in summary.notes if "ledger.json" in n)
    assert "journal.jsonl" in note
    lines = [line.plain for line in ending(summary)]
    assert f"next: mgk verify {tmp_path / 'run'}" in lines


def test_a_foreign_directory_is_no_run(tmp_path):
    """Says what it expected."""
    with pytest.raises(InputError, match="no run directory"):
        look(tmp_path)
