"""``pytest --mgk NAME`` and the badge."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mgk_core.testing.badge import badge
from mgk_core.testing.laws import LawResult


def run(tmp_path, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_each_conformance_test_is_a_test_of_its_own(tmp_path):
    """Named by subject and test; the badge says the same."""
    done = run(tmp_path, "--mgk", "merge", "--mgk-badge", "badge.json", "-v")
    assert done.returncode == 0, done.stdout
    assert "merge exact: rollback is bit-exact PASSED" in done.stdout
    assert "12 passed" in done.stdout
    assert json.loads((tmp_path / "badge.json").read_text())["message"] == "12 passed"


def test_without_the_option_nothing_is_imported(tmp_path):
    """A pytest run of another project where mgk happens to be installed: no torch, no plugin."""
    (tmp_path / "test_x.py").write_text(
        "import sys\n\n\ndef test_x():\n    assert not {'torch', 'mgk_core.host'} & set(sys.modules)\n"
    )
    done = run(tmp_path, "-q")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("oks", "message", "color"),
    [
        ([True, None, True], "2 passed", "brightgreen"),
        ([True, False], "1 of 2 failed", "red"),
        ([None], "not tested", "grey"),
    ],
)
def test_the_badge_says_what_the_tests_did(oks, message, color):
    """Green needs a test that applies."""
    found = badge(LawResult("a", "b", ok) for ok in oks)
    assert (found["message"], found["color"]) == (message, color)
