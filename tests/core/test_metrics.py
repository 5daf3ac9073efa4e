"""R, BWT and their kin against figures worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract import comparison
from mgk_core.contract.bundle import Score
from mgk_core.run import metrics


def score(probe, value, *, higher=True, items=(), stderr=0.0, metric="m"):
    return Score(
        probe, metric, value, max(len(items), 1), stderr, higher, per_item=tuple(items)
    )


def matrix(
    values, probes=("base", "a", "b"), higher=(True, True, True), taught=(None, 1, 2)
):
    return metrics.Retention(
        probes, tuple(f"r{i}" for i in range(len(values))), values, higher, taught
    )


# rows: base, after a, after b
R = matrix(((0.9, 0.2, 0.1), (0.8, 0.7, 0.2), (0.5, 0.4, 0.9)))


def test_bwt_is_the_mean_change_since_each_earlier_probe_was_taught():
    """Only probe a was taught before the last row: 0.4 − 0.7."""
    assert metrics.bwt(R) == pytest.approx(-0.3)


def test_forgetting_takes_the_best_row_since_taught():
    """Best of a before the last row is 0.7, the last 0.4."""
    assert metrics.forgetting(R) == pytest.approx(0.3)


def test_forgetting_sees_a_peak_that_bwt_does_not():
    """With a later peak of 0.8, forgetting counts from there and BWT from the diagonal."""
    r = matrix(((0.2,), (0.7,), (0.8,), (0.4,)), ("a",), (True,), (1,))
    assert metrics.bwt(r) == pytest.approx(-0.3)
    assert metrics.forgetting(r) == pytest.approx(0.4)


def test_forward_transfer_is_what_b_gained_before_it_was_taught():
    """b stood at 0.1, and at 0.2 after phase a."""
    assert metrics.forward_transfer(R) == pytest.approx(0.1)


def test_plasticity_is_the_mean_gain_of_each_phase():
    """a gained 0.5, b gained 0.8."""
    assert metrics.plasticity(R) == pytest.approx(0.65)


def test_gain_kept_compares_unlike_scores():
    """a kept (0.4 − 0.2) of (0.7 − 0.2)."""
    assert metrics.gain_kept(R, "a") == pytest.approx(0.4)
    assert metrics.gain_kept(R, "b") == pytest.approx(1.0)
    assert metrics.gain_kept(R, "base") is None


def test_base_drift_and_worst():
    """The base lost 0.4 since row 0, which is more than a lost."""
    assert metrics.base_drift(R) == {"base": pytest.approx(-0.4)}
    assert metrics.worst(R) == ("base", pytest.approx(-0.4))


def test_lower_is_better_turns_every_sign():
    """A perplexity that rises is forgetting, as an accuracy that falls is."""
    r = matrix(((20.0,), (10.0,), (16.0,)), ("ppl",), (False,), (1,))
    assert metrics.bwt(r) == pytest.approx(-6.0)
    assert metrics.gain_kept(r, "ppl") == pytest.approx(0.4)


def test_nothing_to_say_is_none_not_zero():
    """Without an earlier probe there is no BWT and no forgetting."""
    r = matrix(((0.1,), (0.5,)), ("a",), (True,), (1,))
    assert metrics.bwt(r) is None
    assert metrics.forgetting(r) is None


def test_retention_of_places_missing_scores_and_untaught_probes():
    """A probe not measured in a row is None; one whose phase has not run stands after the last row."""
    rows = [
        ("base", {"a": score("a", 1.0), "g": score("g", 0.5)}),
        ("a", {"a": score("a", 2.0)}),
    ]
    r = metrics.retention_of(rows, {"a": "a", "g": "a", "z": "later", "w": "base"})
    assert r.values[1] == (2.0, None, None, None)
    assert r.taught == (1, 1, 2, None)
    assert metrics.gain(r, "z") is None


def test_mcnemar_counts_changed_items_only():
    """Eight won and none lost: 2 · 2⁻⁸."""
    before, after = (
        score("p", 0, items=[0.0] * 8 + [1.0] * 4),
        score("p", 1, items=[1.0] * 12),
    )
    found = comparison.paired(before, after)
    assert found.test == "McNemar exact"
    assert found.p == pytest.approx(2 * 0.5**8)
    assert found.difference == pytest.approx(8 / 12)


def test_paired_standard_error_is_that_of_the_differences():
    """Differences 1, 2, 3, 2: mean 2, variance 2/3, standard error √(2/3/4)."""
    found = comparison.paired(
        score("p", 0, items=[0.0, 0.5, 1.0, 4.0]),
        score("p", 0, items=[1.0, 2.5, 4.0, 6.0]),
    )
    assert found.difference == pytest.approx(2.0)
    assert found.stderr == pytest.approx(math.sqrt(2 / 3 / 4))


@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=12))
def test_few_items_prove_little(gains):
    """n items that all gain are no more significant than n throws of one side, and one item has no error to show."""
    found = comparison.paired(
        score("p", 0, items=[0.5] * len(gains)),
        score("p", 0, items=[0.5 + g for g in gains]),
    )
    assert found.p >= 2.0 ** (1 - len(gains))
    assert math.isnan(found.stderr) == (len(gains) == 1)


def test_paired_needs_the_same_items():
    """Looks at different numbers of items are not compared."""
    assert (
        comparison.paired(score("p", 0, items=[1.0]), score("p", 0, items=[1.0, 2.0]))
        is None
    )


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=30), st.booleans())
def test_paired_is_antisymmetric(items, higher):
    """Turning the comparison round turns the sign and nothing else."""
    a = score("p", 0, items=items, higher=higher)
    b = score("p", 0, items=[x * 0.5 + 0.3 for x in items], higher=higher)
    one, two = comparison.paired(a, b), comparison.paired(b, a)
    assert one.difference == pytest.approx(-two.difference)
    assert one.stderr == pytest.approx(two.stderr)


def test_interval_of_right_or_wrong_items_is_wilsons():
    """None of 40: [0, z² / (n + z²)]; half of 40: symmetric about one half."""
    z2 = 1.959964**2
    low, high = comparison.interval(score("q", 0.0, items=[0.0] * 40))
    assert low == 0.0
    assert high == pytest.approx(z2 / (40 + z2))
    low, high = comparison.interval(score("q", 0.5, items=[0.0, 1.0] * 20))
    assert low + high == pytest.approx(1.0)
    assert high - low == pytest.approx(
        2 * math.sqrt(z2 / 160 + z2**2 / 6400) / (1 + z2 / 40)
    )


def test_interval_of_other_scores_is_normal():
    """Mean ± 1.96 standard errors."""
    low, high = comparison.interval(score("q", 2.0, items=[1.5, 2.5], stderr=0.5))
    assert (low, high) == (pytest.approx(2 - 0.979982), pytest.approx(2 + 0.979982))


def test_a_change_is_in_the_metrics_unit():
    """A perplexity's items are nats: the error of 8 → 4 is that of the nats times their mean, 6."""
    items = [2.0, 2.2, 2.1, 2.3], [1.4, 1.3, 1.5, 1.2]
    before = score("p", 8.0, items=items[0], higher=False, metric="perplexity")
    after = score("p", 4.0, items=items[1], higher=False, metric="perplexity")
    found = comparison.change(before, after)
    assert (found.before, found.after, found.change) == (8.0, 4.0, 4.0)
    assert found.stderr == pytest.approx(6.0 * comparison.paired(before, after).stderr)


def test_a_change_without_items_is_a_z_test():
    """1.96 standard errors of the difference are p = 0.05; of no known error none is significant."""
    before = score("p", 0.0, stderr=0.6)
    found = comparison.change(before, score("p", 1.959964, stderr=0.8))
    assert found.stderr == pytest.approx(1.0)
    assert found.p == pytest.approx(0.05, abs=1e-6)
    assert comparison.change(before, score("p", 9.0, stderr=math.nan)).p == 1.0


def test_a_mean_by_metric_never_mixes_units():
    """BWT over accuracies and over losses apart; a metric without an earlier probe has none."""
    rows = [
        ("base", {"a": score("a", 0.2), "b": score("b", 9.0), "c": score("c", 1.0)}),
        ("one", {"a": score("a", 0.8), "b": score("b", 4.0), "c": score("c", 1.0)}),
        ("two", {"a": score("a", 0.5), "b": score("b", 6.0), "c": score("c", 5.0)}),
    ]
    r = metrics.retention_of(rows, {"a": "one", "b": "one", "c": "two"})
    found = metrics.by_metric(metrics.bwt, r, ["accuracy", "loss", "margin"])
    assert found == {"accuracy": pytest.approx(-0.3), "loss": pytest.approx(2.0)}
