"""Settings of the whole suite: hypothesis profiles and one thread, so that bits do not depend on the machine's load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]

settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("thorough", max_examples=250, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("MGK_HYPOTHESIS", "fast"))

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the reference pipeline; tests that change anything take a copy."""
    from mgk_core.runner import run_pipeline

    out = tmp_path_factory.mktemp("runs") / "finished"
    run_pipeline("textmodel", out=out, overrides=["run.threads=1"])
    return out


@pytest.fixture(scope="session")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the reference pipeline that was stopped after its first phase."""
    from mgk_core.runner import run_pipeline

    out = tmp_path_factory.mktemp("runs") / "half"
    run_pipeline("textmodel", out=out, overrides=["run.threads=1"], until="plain_text")
    return out
