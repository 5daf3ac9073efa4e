"""Run directories that an earlier version wrote: shown, verified and resumed by this one.

`tests/fixtures/before_rooms` was written before the core was divided into rooms (digest format 1).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures" / "before_rooms"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Return a copy of both runs."""
    return Path(shutil.copytree(FIXTURES, tmp_path / "runs"))


def _ledger(run: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "ledger.json").read_text())
    return found


def _same_machine(run: Path) -> bool:
    """Whether this CPU multiplies as the one did on which the run was made: bits can only be equal then."""
    return (
        _ledger(run)["environment"]["capability"]
        == torch.backends.cpu.get_cpu_capability()
    )  # type: ignore[index]


def test_a_finished_run_is_shown_and_verified(mgk, earlier):
    """Both commands read what an earlier version wrote."""
    shown = mgk("show", earlier / "finished")
    assert shown.code == 0, shown.err
    assert "48.22" in shown.out
    verified = mgk("verify", earlier / "finished")
    assert verified.code == 0, verified.err
    if _same_machine(earlier / "finished"):
        weights = mgk("verify", earlier / "finished", "--weights")
        assert weights.code == 0, weights.err


def test_a_stopped_run_is_resumed_to_the_weights_that_the_earlier_version_came_to(
    mgk, earlier
):
    """What changed is named; accepted, the run ends in the digests of the run that never stopped."""
    refused = mgk("resume", earlier / "half")
    assert refused.code == 2
    changed = re.findall(r"^  ([a-z]+\.\w+): was", refused.err, re.MULTILINE)
    assert "plugin.core" in changed
    accepted = [part for key in changed for part in ("--accept-change", key)]
    resumed = mgk("resume", earlier / "half", *accepted)
    assert resumed.code == 0, resumed.err
    if _same_machine(earlier / "half"):
        merged = [
            [p["merged"] for p in _ledger(earlier / run)["phases"]]
            for run in ("half", "finished")
        ]  # type: ignore[attr-defined]
        assert merged[0] == merged[1]
