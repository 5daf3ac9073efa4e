"""The memory that a plan estimates, against the most that the run's process held."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

TINY = [
    "base.id=tiny-gemma",
    "phases.plain_text=false",
    "phases.mcq=false",
    "defaults.retention.drift-guard=false",
    "defaults.gate.min-gain=false",
    "defaults.gate.keep-base=false",
    "defaults.evaluate.limit=8",
    "phases.dictionary.train.steps=3",
]
SHAPES = {
    "reference": (
        "textmodel",
        ["defaults.train.steps=3", "defaults.gate.min-gain=false"],
    ),
    "wide": (
        "textmodel",
        [
            "base.widths=[64,4096,4096,32]",
            "defaults.train.steps=3",
            "defaults.gate.min-gain=false",
            *(
                f"phases.{p}.optimizer.lr=1e-5"
                for p in ("plain_text", "medical_dictionary", "mcq")
            ),
        ],
    ),
    "language": ("korean-medical", TINY),
    "large batch": (
        "korean-medical",
        [*TINY, "phases.dictionary.train.batch_size=256"],
    ),
}


def held_by(process):
    """Return the most bytes that a process has held so far; None once it has ended."""
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return 1024 * int(found[0]) if found else None


def mgk(*arguments):
    """Return (the most bytes that the process held, its output)."""
    most = 0
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mgk_cli", *arguments, "--json"],
            stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        while process.poll() is None:
            most = max(most, held_by(process) or 0)
            time.sleep(0.02)
        out.seek(0)
        text = out.read().decode()
    assert process.returncode == 0, text
    return most, text


@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_is_within_a_fifth_of_what_the_run_takes(shape, tmp_path):
    """Small and large bases and batches, of both kinds of model."""
    pipeline, values = SHAPES[shape]
    settings = [x for value in ("run.threads=1", *values) for x in ("--set", value)]
    lines = mgk("plan", pipeline, *settings)[1].splitlines()
    plan = json.loads(next(line for line in lines if line.startswith('{"name"')))
    measured, _ = mgk("run", pipeline, *settings, "--out", str(tmp_path / "run"))
    assert plan["memory_peak"] == pytest.approx(measured, rel=0.2)
