"""Verification: every file of a run directory is covered by a digest that a flip breaks."""

import shutil

import pytest

from mgk_core.record.ledger import read_ledger
from mgk_core.tools.verify_run import audit, audit_weights


@pytest.fixture
def run(finished_run, tmp_path):
    """Return a copy of the finished run."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def files_of(run):
    """Return the files that are on record."""
    unrecorded = (".lock", "report.html")
    return sorted(p for p in run.rglob("*") if p.is_file() and p.name not in unrecorded)


def test_a_sound_run_has_no_findings(finished_run):
    """Every file is looked at, and nothing is found."""
    found = audit(finished_run)
    assert (found.sound, found.findings) == (True, [])
    assert found.covered == {
        str(p.relative_to(finished_run)) for p in files_of(finished_run)
    }


def test_what_plugins_write_for_themselves_is_not_verified(run):
    """A report, and files below ``files/`` of the run or of a phase, may change at any time."""
    for name in ("report.html", "files/log.txt", "phases/0-plain_text/files/log.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("changed")
    assert audit(run).findings == []
    (run / "report.htm").write_text("another")
    assert [f.path for f in audit(run).findings] == ["report.htm"]


def test_a_flipped_bit_in_any_file_is_found_and_named(run):
    """One bit in the middle of each file, one file after the other."""
    files = files_of(run)
    assert len(files) > 15
    for path in files:
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        found = audit(run)
        assert not found.sound, path
        assert str(path.relative_to(run)) in {f.path for f in found.findings}, path
        path.write_bytes(data)
    assert audit(run).sound


def test_a_truncated_file_is_found_and_named(run):
    """Each file cut to half, one after the other."""
    for path in files_of(run):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        found = audit(run)
        assert not found.sound, path
        path.write_bytes(data)


def test_a_missing_file_is_found_and_named(run):
    """Each file but the journal, without which it is no run, one after the other."""
    for path in files_of(run):
        if path.name == "journal.jsonl":
            continue
        data = path.read_bytes()
        path.unlink()
        found = audit(run)
        assert str(path.relative_to(run)) in {
            f.path for f in found.findings if not f.harmless
        }, path
        path.write_bytes(data)


def test_a_whole_line_lost_from_the_journals_end_is_found(run):
    """The chain is whole, but the ledger is then none that the journal knows."""
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 2]))
    assert not audit(run).sound


def test_what_a_crash_leaves_is_noted_and_does_no_harm(run):
    """A torn last line and a temporary file: told, and the run still counts as sound."""
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b'{"n": 99, "event": "che')
    (run / "phases/.tmp-x").write_text("half")
    found = audit(run)
    assert found.sound
    assert {f.path for f in found.findings} == {"journal.jsonl", "phases/.tmp-x"}


def test_the_weights_are_built_again(finished_run):
    """From the base and the adapters alone come the weights of the ledger."""
    found = audit(finished_run)
    audit_weights(found)
    assert found.sound
    assert found.weights == read_ledger(finished_run).head


@pytest.mark.slow
def test_a_checkpoint_is_covered_too(tmp_path):
    """An unfinished phase's checkpoint is read as a resume would read it."""
    import os
    import signal
    import subprocess
    import sys

    out = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", "run", "textmodel", "--out", str(out), "--json", "--set", "run.threads=1",
         "--set", "phases.plain_text.train.epochs=20000", "--set", "phases.plain_text.train.log_every=1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for line in child.stdout:
        if b'"step"' in line:
            break
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert audit(out).sound
    for path in sorted(out.glob("phases/0-plain_text/checkpoint/step-*/*")):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        found = audit(out)
        assert not found.sound, path
        assert str(path.relative_to(out)) in {f.path for f in found.findings}, path
        path.write_bytes(data)
