"""benchmarks/large_base.py runs with a tiny shape, so that it does not rot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/large_base.py"


@pytest.mark.slow
def test_a_step_of_a_written_shape_is_measured(tmp_path):
    """Stored and fp32 weights of the same directory: peaks, seconds, and a base of the size of its file."""
    out = tmp_path / "large.json"
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--dtype", "stored", "auto", "--tokens", "32", "--out", out]  # fmt: skip
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert [s["dtype"] for s in found["steps"]] == ["stored", "auto"]
    assert all(0 < s["rest"] <= s["peak"] for s in found["steps"])
    assert found["base_bytes"] > 2 * 512 * 64
