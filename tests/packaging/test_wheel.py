"""What a user installs: the wheel's content, and a run from it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = {
    "mgk", "mgk_core", "mgk_cli", "mgk_phases", "mgk_bench", "mgk_harness", "mgk_hf", "mgk_lora", "mgk_merge", "mgk_peft", "mgk_preference", "mgk_report", "mgk_retention", "mgk_sgd", "mgk_share",
    "mgk_stack", "mgk_text", "mgk_textmodel", "mgk_trackers", "mgk_validation", "mgk_weights",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_packages_their_data_and_nothing_else(wheel):
    """Top-level names are exactly the packages; data and type markers are in."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {n.split("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == TOP
    assert any(n.startswith("mgk_phases/data/korean_medical/mcq/") for n in names)
    assert "mgk_phases/data/preference/train.jsonl" in names
    assert {f"{t}/py.typed" for t in TOP} <= set(names)


@pytest.mark.slow
def test_the_reference_pipeline_runs_from_the_installed_wheel(wheel, tmp_path):
    """`mgk run textmodel` works from the wheel, in another directory, without the source tree."""
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "2"}
    where = subprocess.run(
        [sys.executable, "-c", "import mgk_core, mgk_lora; print(mgk_core.__file__, mgk_lora.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert where.stdout.count(str(site)) == 2
    run = subprocess.run(
        [str(site / "bin" / "mgk"), "run", "textmodel", "--out", "run", "--quiet"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert [p["result"] for p in ledger["phases"]] == ["committed"] * 3
