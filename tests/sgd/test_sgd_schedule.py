import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_sgd.schedule import Schedule

schedules = st.builds(
    Schedule,
    total=st.integers(1, 500),
    kind=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 600),
    floor=st.floats(0, 1),
)


@given(schedules, st.integers(0, 700))
def test_factor_is_between_zero_and_one(schedule: Schedule, step: int) -> None:
    """No schedule leaves [0, 1], before, within or after the phase."""
    assert 0 <= schedule.factor(step) <= 1


@given(schedules, st.integers(0, 600))
def test_rises_in_warm_up_and_never_afterwards(schedule: Schedule, step: int) -> None:
    """The factor grows while warming up and falls, or stays, from then on."""
    now, then = schedule.factor(step), schedule.factor(step + 1)
    if step + 1 < schedule.warmup:
        assert then > now
    elif step >= schedule.warmup:
        assert then <= now + 1e-12


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_ends_at_the_floor(kind: str) -> None:
    """At the phase's last step and beyond, linear and cosine are at their least."""
    schedule = Schedule(total=100, kind=kind, warmup=10, floor=0.25)
    assert schedule.factor(100) == schedule.factor(10_000) == pytest.approx(0.25)
    assert schedule.factor(10) == 1.0


def test_known_values() -> None:
    """Warm-up counts from 1/n; half-way linear is 1/2 and cosine 1/2, at a quarter (1 + √½) / 2."""
    assert [Schedule(8, "constant", 4).factor(i) for i in range(6)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]
    assert Schedule(100, "linear").factor(50) == pytest.approx(0.5)
    assert Schedule(100, "cosine").factor(50) == pytest.approx(0.5)
    assert Schedule(100, "cosine").factor(25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_a_foreign_spec_means_a_constant_rate() -> None:
    """An optimizer of another plugin without schedule keys is left at its own learning rate."""
    schedule = Schedule.of(object(), 10)
    assert {schedule.factor(i) for i in range(20)} == {1.0}
