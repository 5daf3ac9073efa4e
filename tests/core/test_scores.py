"""Which items of a probe make a row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.bundle import Probe
from mgk_core.contract.errors import ConfigError
from mgk_core.contract.settings import EvaluateSettings
from mgk_core.host.manager import load_plugins
from mgk_core.run.runner import run_pipeline
from mgk_core.run.scores import unmatched_limits

COUNT = st.integers(1, 200)


@given(items=COUNT, limit=st.none() | COUNT, own=COUNT, other=COUNT)
def test_the_tightest_limit_that_names_a_probe_decides(items, limit, own, other):
    """No limit lets more through than another one does, and one for other probes is none."""
    settings = EvaluateSettings(limit=limit, limits={"mcq*": own, "text": other})
    assert settings.count("mcq-margin", items) == min(
        items, own, items if limit is None else limit
    )
    assert settings.count("dictionary", items) == min(
        items, items if limit is None else limit
    )


def small(tmp_path, **sets):
    """Run the reference pipeline with a step a phase; returns the events."""
    seen = []
    overrides = {
        f"phases.{p}.train.steps": 1
        for p in ("plain_text", "medical_dictionary", "mcq")
    }
    overrides |= {"defaults.gate.min-gain": False, **sets}
    run_pipeline(
        "textmodel", out=tmp_path / "run", overrides=overrides, sink=seen.append
    )
    return seen


def test_rows_hold_as_many_items_as_the_limits_say(tmp_path):
    """One probe has a limit of its own, the others the common one, in every row."""
    seen = small(
        tmp_path,
        **{"defaults.evaluate.limit": 7, "defaults.evaluate.limits": {"mcq": 3}},
    )
    rows = [e["scores"] for e in seen if e["event"] == "evaluation"]
    assert len(rows) == 4
    for row in rows:
        assert {s["probe"]: s["n"] for s in row} == {
            "plain_text": 7,
            "medical_dictionary": 7,
            "mcq": 3,
        }


def test_a_limit_of_no_probe_is_told(tmp_path):
    """A glob that matches nothing is no error, since phases may be left out, and is said."""
    seen = small(tmp_path, **{"defaults.evaluate.limits": {"mqc*": 3}})
    told = [e["text"] for e in seen if e["event"] == "note" and "limits" in e["text"]]
    assert len(told) == 1
    assert "'mqc*'" in told[0]


def test_a_limit_of_no_items_is_an_error():
    """Nothing measured is no measurement."""
    with pytest.raises(
        ConfigError, match="limits: expected at least 1 item, got 0 for 'mcq'"
    ):
        resolve(
            load_tree("textmodel", overrides={"defaults.evaluate.limits": {"mcq": 0}}),
            load_plugins().registry,
        )


def test_each_glob_is_told_once():
    """Phases share their defaults; the first phase stands for all."""
    tree = load_tree("textmodel", overrides={"defaults.evaluate.limits": {"x": 1}})
    phases = resolve(tree, load_plugins().registry).config.phases
    assert list(
        unmatched_limits(
            [Probe("y", "plain_text", "loss", (1,), higher_is_better=False)], phases
        )
    ) == [("plain_text", "x")]
