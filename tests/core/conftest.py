"""A small, fast configuration of the reference pipeline."""

import pytest

from mgk_core.run.runner import run_pipeline

SMALL = {
    "phases.plain_text.train.steps": 12,
    "phases.medical_dictionary.train.steps": 12,
    "phases.mcq.train.steps": 12,
    "phases.plain_text.optimizer.lr": 4e-3,
    "phases.medical_dictionary.optimizer.lr": 4e-3,
    "phases.mcq.optimizer.lr": 4e-3,
    "defaults.data.items": 24,
    "defaults.gate.min-gain": False,  # twelve steps are too few for the gain that the pipeline asks for
    "run.threads": 1,
}


@pytest.fixture
def small(tmp_path):
    """Run the reference pipeline in a small form; further settings by keyword."""

    def run(out="run", until=None, sink=lambda event: None, **settings):
        overrides = SMALL | {k.replace("__", "."): v for k, v in settings.items()}
        return run_pipeline(
            "textmodel", out=tmp_path / out, overrides=overrides, until=until, sink=sink
        )

    return run
