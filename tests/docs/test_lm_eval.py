"""The task file for lm-evaluation-harness: the harness and mgk's own probe agree on a run's model."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

TASK = "mgk_korean_medical_mcq"
SETS = [
    "base.id=tiny-gemma",
    "phases.plain_text=false",
    "phases.dictionary=false",
    "phases.mcq.train.steps=4",
    "phases.mcq.data.generate=0",
    "defaults.gate.min-gain=false",
    "defaults.evaluate.limit=120",
]


@pytest.mark.slow
def test_the_harness_counts_what_the_probe_counts(tmp_path):
    """Accuracy by whole log-likelihood is the same number of the 120 test questions in both."""
    pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is not installed: pip install lm-eval"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MGK_CACHE": str(tmp_path / "cache"),
    }
    environment["HF_HOME"] = str(tmp_path / "hf")
    sets = [part for value in SETS for part in ("--set", value)]
    mgk = [
        str(Path(sys.executable).with_name("mgk")),
        "run",
        "--out",
        "run",
        "--quiet",
        *sets,
    ]
    subprocess.run(mgk, cwd=tmp_path, env=environment, check=True, timeout=600)
    folder = str(files("mgk_phases") / "lm_eval")
    harness = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=run/model,dtype=float32",
        "--include_path", folder, "--tasks", TASK, "--device", "cpu", "--batch_size", "8", "--output_path", "out",
    ]  # fmt: skip
    subprocess.run(harness, cwd=tmp_path, env=environment, check=True, timeout=900)
    found = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())[
        "results"
    ][TASK]["acc,none"]
    row = json.loads(
        (tmp_path / "run" / "phases" / "0-mcq" / "scores.json").read_text()
    )
    probe = next(s for s in _scores(row) if s["probe"] == "mcq-accuracy")
    assert (round(found * 120), probe["n"]) == (
        round(probe["extra"]["accuracy_whole"] * 120),
        120,
    )


def _scores(tree):
    """Yield every score in a row, wherever the file keeps it."""
    if isinstance(tree, dict):
        if "probe" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from _scores(value)
