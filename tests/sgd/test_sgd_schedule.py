import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.settings import SCHEDULES
from mgk_sgd.schedule import Schedule
from mgk_sgd.specs import AdamwSpec

schedules = st.builds(
    Schedule,
    total=st.integers(1, 500),
    kind=st.sampled_from([s for s in SCHEDULES if s != "cosine_with_restarts"]),
    warmup=st.integers(0, 600),
    floor=st.floats(0, 1),
    decay=st.integers(0, 600),
    power=st.floats(0.25, 4),
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


@pytest.mark.parametrize(
    ("name", "keys", "theirs"),
    [
        ("constant_with_warmup", {}, {}),
        ("linear", {}, {}),
        ("cosine", {}, {}),
        ("cosine_with_min_lr", {"min_lr_ratio": 0.2}, {"min_lr_rate": 0.2}),
        ("cosine_with_restarts", {"cycles": 3}, {"num_cycles": 3}),
        ("polynomial", {"power": 2.0, "min_lr_ratio": 0.1}, {"power": 2.0, "lr_end": 0.1}),
        ("inverse_sqrt", {}, {}),
        ("warmup_stable_decay", {"decay_ratio": 0.25}, {"num_decay_steps": 10, "decay_type": "linear"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules_are_those_of_transformers(
    name: str, keys: dict[str, Any], theirs: dict[str, Any], warmup: int
) -> None:
    """Equal at every step of forty; in warm-up mgk is one step ahead, so that no step has a rate of zero."""
    get_scheduler = pytest.importorskip("transformers").get_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(name, optimizer, warmup, 40, theirs)
    spec = AdamwSpec(type="adamw", schedule=name, warmup_steps=warmup, **keys)
    ours = Schedule.of(spec, 40)
    for step in range(40):
        expected = (step + 1) / warmup if step < warmup else reference.get_last_lr()[0]
        assert ours.factor(step) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        reference.step()


def test_a_share_of_warm_up_is_rounded_up() -> None:
    """As transformers rounds warmup_ratio."""
    spec = AdamwSpec(type="adamw", warmup_ratio=0.06)
    assert Schedule.of(spec, 101).warmup == 7
    assert Schedule.of(spec, 10).warmup == 1


def test_every_schedule_of_the_contract_is_made() -> None:
    """Each name falls from 1 after warm-up to the floor at the end, or stays."""
    for name in SCHEDULES:
        found = Schedule.of(AdamwSpec(type="adamw", schedule=name), 50)
        factors = [found.factor(step) for step in range(51)]
        assert factors[0] == 1.0
        assert all(0 <= f <= 1 for f in factors)
        if name not in ("constant", "constant_with_warmup", "inverse_sqrt"):
            assert factors[50] == pytest.approx(0.0, abs=1e-12)
