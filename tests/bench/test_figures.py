"""The metrics of continual learning: by hand, and the identities between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_bench import figures as f
from mgk_bench.cell import Cell
from mgk_bench.figures import Matrix


def cell(rows, taught, items=(), method="m", generated=()):
    return Cell(method, "s", 0, rows, taught, 1.0, 0, items=items, generated=generated)


@st.composite
def matrices(draw):
    """Square matrices: task j is taught by phase j + 1, or the base was made on the first task."""
    count = draw(st.integers(2, 6))
    first = draw(st.sampled_from([0, 1]))
    score = st.floats(-100, 100, allow_nan=False, width=32)
    row = st.tuples(*[score] * count)
    rows = tuple(draw(row) for _ in range(count + first))
    return Matrix(rows, tuple(range(first, count + first)))


def test_metrics_by_hand():
    """Every metric of a matrix that is written out."""
    rows = ((10.0, 20.0, 30.0), (90.0, 25.0, 28.0), (80.0, 95.0, 40.0), (60, 85, 99))
    r = Matrix(rows, (1, 2, 3))
    assert f.average_performance(r) == pytest.approx((60 + 85 + 99) / 3)
    assert f.backward_transfer(r) == pytest.approx(((60 - 90) + (85 - 95)) / 2)
    assert f.forward_transfer(r) == pytest.approx(((25 - 20) + (40 - 30)) / 2)
    assert f.forgetting_first(r) == pytest.approx(20)
    assert f.forgetting_maximum(r) == pytest.approx((30 + 10) / 2)
    assert f.learning_accuracy(r) == pytest.approx((90 + 95 + 99) / 3)
    assert f.gap_closed(80, 60, 100) == 0.5
    assert f.gap_closed(80, 60, 60) is None


def test_the_maximum_counts_rows_before_a_task_was_taught():
    """Chaudhry et al. take the maximum over all earlier rows, not from the task's own on."""
    r = Matrix(((0.0, 0.0), (5.0, 9.0), (5.0, 7.0), (5.0, 6.0)), (1, 2))
    assert f.forgetting_maximum(r) == pytest.approx((0 + 3) / 2)
    assert f.forgetting_first(r) == pytest.approx((0 + 1) / 2)


def test_a_task_that_the_base_was_made_on_counts_from_the_baseline():
    """It is forgotten, but no phase learned it."""
    r = Matrix(((90.0, 10.0), (70.0, 95.0)), (0, 1))
    assert f.backward_transfer(r) == pytest.approx(-20)
    assert f.forgetting_maximum(r) == pytest.approx(20)
    assert f.learning_accuracy(r) == 95.0


def test_joint_training_forgets_nothing():
    """All tasks at once: AP and learning accuracy only."""
    r = Matrix(((90.0, 10.0), (88.0, 97.0)), (1, 1))
    assert f.backward_transfer(r) is None
    assert f.forward_transfer(r) is None
    assert f.average_performance(r) == f.learning_accuracy(r)


@given(matrices())
def test_identities(r):
    """Forgetting (first) is −BWT, at most forgetting (maximum); Σ R[T, j] is what was learnt plus what changed."""
    assert f.forgetting_first(r) == -f.backward_transfer(r)
    assert f.forgetting_maximum(r) >= f.forgetting_first(r) - 1e-9
    learned = sum(r.diagonal(j) for j in range(len(r.taught)))
    changed = f.backward_transfer(r) * len(r.earlier)
    whole = f.average_performance(r) * len(r.taught)
    assert whole == pytest.approx(learned + changed, abs=1e-6)


@given(matrices(), st.floats(0.125, 8), st.floats(-50, 50))
def test_units_do_not_matter_to_the_closed_gap(r, factor, shift):
    """It is 0 for naive, 1 for joint, and the same in any unit of the metric."""
    ap, naive, joint = f.average_performance(r), -120.0, 120.0
    assert f.gap_closed(naive, naive, joint) == 0
    assert f.gap_closed(joint, naive, joint) == 1
    scaled = [factor * v + shift for v in (ap, naive, joint)]
    assert f.gap_closed(*scaled) == pytest.approx(f.gap_closed(ap, naive, joint))


def test_differences_are_paired_by_item():
    """The error is that of the differences: items on which both agree add nothing to it."""
    one = cell(((0.0, 0.0), (0.5, 0.75)), (1, 1), ((1, 0, 1, 0), (1, 1, 1, 0)))
    other = cell(((0.0, 0.0), (0.5, 0.5)), (1, 1), ((1, 0, 1, 0), (1, 1, 0, 0)))
    found = f.paired_difference(one, other)
    assert found.value == pytest.approx(0.125)
    assert found.stderr == pytest.approx((0.25 / 4) ** 0.5 / 2)
    assert f.paired_difference(one, cell(one.rows, one.taught)) is None


def test_generated_answers_have_figures_of_their_own():
    """AP and BWT of the generated metric, and its closed gap, beside those of the matrix."""
    rows, taught = ((0.0, 0.0), (3.0, 0.0), (2.0, 4.0)), (1, 2)
    naive = cell(rows, taught, method="naive", generated=((40.0, 50.0), (20.0, 50.0)))
    joint = cell(
        ((0.0, 0.0), (4.0, 6.0)), (1, 1), method="joint", generated=((50.0, 60.0),) * 2
    )
    mine = cell(rows, taught, generated=((40.0, 50.0), (38.0, 50.0)))
    found = f.figures(mine, {"naive": naive, "joint": joint})
    assert (found.generated, found.generated_bwt) == (44.0, -2.0)
    assert found.generated_gap_closed == pytest.approx(9 / 20)
    assert found.gap_closed == 0.0
