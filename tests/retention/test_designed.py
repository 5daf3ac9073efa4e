"""A designed from new and old inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mgk
from mgk_retention.collect import collect
from mgk_retention.designed import design, directions
from mgk_retention.moments import Dense
from mgk_retention.specs import DesignedSpec


def psd(d, seed):
    x = torch.randn(
        2 * d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return x.mT @ x / (2 * d)


@given(d=st.integers(2, 8), seed=st.integers(0, 99), strength=st.floats(0.1, 100))
def test_first_direction_has_the_best_ratio(d, seed, strength):
    """No other direction has more new energy against new plus old."""
    new, old = psd(d, seed), psd(d, seed + 1)
    found = directions(Dense(new), Dense(old), 1, strength, 1e-6)[0]

    def ratio(a):
        return float((a @ new @ a) / (a @ (new + strength * old) @ a))

    others = torch.randn(
        200, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    assert all(ratio(found) >= ratio(a) * (1 - 1e-4) for a in others)


def test_old_directions_are_avoided():
    """Where old inputs live, A lets nothing through, if new inputs live elsewhere too."""
    new, old = (
        torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0])),
        torch.diag(torch.tensor([9.0, 0.0, 0.0, 0.0])),
    )
    found = directions(Dense(new), Dense(old), 2, 100.0, 1e-4)
    assert found[:, 0].abs().max() < 1e-3
    assert torch.allclose(found.norm(dim=1), torch.ones(2, dtype=found.dtype))


@pytest.mark.parametrize("freeze", [True, False])
def test_identity_stays_and_freezing_is_a_setting(small, context, freeze):
    """A changes, B stays zero, so the output is the base's bit for bit; A trains only if asked."""
    model, data = small.network(), small.rows()
    ctx = context(model, {"designed-a": {"sketch": 0, "freeze": freeze}}, data=data)
    ctx.history = small.remembered(base=collect(ctx))
    base = model(data.inputs)
    ctx.adapter = adapter = mgk.attach(model, "lora", rank=2)
    before = adapter.factors("0.weight").a.clone()
    done = design(adapter, ctx, ctx.specs(DesignedSpec)[0])
    assert done == ["0.weight", "2.weight", "4.weight"]
    factors = adapter.factors("0.weight")
    assert not torch.equal(factors.a, before)
    assert torch.equal(model(data.inputs), base)
    assert factors.a.requires_grad is not freeze
    assert factors.b.requires_grad


def test_trained_adapters_are_left_alone(small, context):
    """B ≠ 0 (PiSSA, or a second call): changing A would change the output."""
    model = small.network()
    ctx = context(model, {"designed-a": {"sketch": 0}})
    ctx.adapter = small.random_adapter(model)
    assert design(ctx.adapter, ctx, ctx.specs(DesignedSpec)[0]) == []
