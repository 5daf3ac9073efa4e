"""benchmarks/gpu.sh runs whole on the CPU with tiny shapes, so that it does not rot while no GPU is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {
    "environment", "step-1b-bf16", "step-4b-bf16", "step-8b-bf16", "merge-4b", "phase-1b", "step-4b-nf4", "step-8b-nf4",
}  # fmt: skip


@pytest.mark.slow
def test_every_part_reports_and_every_way_takes_the_same_steps(tmp_path):
    """Each part ends with 0 and a whole file; mgk's losses are PEFT's on the same weights and rows."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [ROOT / "benchmarks" / "gpu.sh", "--smoke", "--out", tmp_path]
    ran = subprocess.run(
        [*map(str, command), "--seconds", "800"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {f.stem: json.loads(f.read_text()) for f in tmp_path.glob("*.json")}
    assert found.keys() == PARTS
    assert all(part["whole"] and part["smoke"] for part in found.values())
    for name in sorted(n for n in PARTS if n.startswith("step")):
        ways = found[name]["ways"]
        assert not [way for way in ways.values() if "error" in way]
        assert ways["mgk"]["rounds"] == ways["peft"]["rounds"] == 8
        # Eight steps of AdamW at 1e-4 from another random A: the losses stay close and do not agree exactly.
        first, last = (
            [ways[w][key] for w in ("mgk", "peft")]
            for key in ("first_loss", "last_loss")
        )
        assert first[0] == pytest.approx(first[1], rel=1e-5)
        assert last[0] == pytest.approx(last[1], rel=1e-3)
    # A ratio of norms in fp32: it differs from one by a few units in the last place, which depend on the CPU.
    assert found["merge-4b"]["kept"] == pytest.approx(1.0, abs=1e-6)
    assert found["phase-1b"]["parts"]["training"] > 0


def test_a_part_that_runs_out_of_time_says_so_and_the_rest_is_tried(tmp_path):
    """With no seconds at all every part is named, and the exit code is not 0."""
    ran = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), "--smoke", "--out", str(tmp_path), "--seconds", "0"],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stdout.count("no time left") == len(PARTS) + 1
