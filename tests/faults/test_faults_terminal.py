"""A terminal that is closed in the middle of a run: what was told to it is lost, the work is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mgk_core.record.journal import open_journal
from mgk_core.record.store import Store

PATIENCE = 60  # seconds


@pytest.mark.parametrize("hang_up", [False, True])
def test_a_closed_terminal(tmp_path, hang_up):
    """Writing to it fails from then on: the run goes on to its end, or at the hang-up to a checkpoint."""
    run = tmp_path / "run"
    ours, theirs = os.openpty()
    few = [
        x
        for p in ("plain_text", "medical_dictionary")
        for x in ("--set", f"phases.{p}.train.steps=2")
    ]
    more = [
        "--set",
        "phases.mcq.train.steps=3000",
        "--set",
        "defaults.train.log_every=1",
    ]
    gate = ["--set", "defaults.gate.min-gain=false", "--set", "run.threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", "run", "textmodel", "--out", str(run), *few, *more, *gate],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - nohup ignores it
    )  # fmt: skip
    os.close(theirs)
    seen, began = b"", time.monotonic()
    while b"phase 3/3" not in seen and time.monotonic() - began < PATIENCE:
        seen += os.read(ours, 4096)
    os.close(ours)
    if hang_up:
        process.send_signal(signal.SIGHUP)
    code = process.wait(timeout=PATIENCE)
    journal = open_journal(Store(run), repair=False)
    assert code == (130 if hang_up else 0)
    if hang_up:
        assert journal.last("checkpoint")["phase"] == "mcq"
        assert list((run / "phases/2-mcq/checkpoint").iterdir())
    else:
        assert journal.last("finished") is not None
