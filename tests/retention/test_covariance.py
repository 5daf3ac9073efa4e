"""The covariance-aware merge against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.outcome import Proposal, Recovery
from mgk_retention.collect import collect
from mgk_retention.covariance import damping, recovery, with_transform
from mgk_retention.moments import Dense, Sketch, sketched
from mgk_retention.specs import CovarianceRecoverySpec, CovarianceSpec


def rows_of(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(
        n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@given(
    d=st.integers(2, 9), r=st.integers(1, 4), strength=st.floats(0.01, 100), ridge=st.floats(1e-4, 1.0),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_result_minimises_the_objective(d, r, strength, ridge, seed):
    """A* = argmin ‖(A* − A) Xₙ‖² + λ ‖A* Xₒ‖² + ρ ‖A*‖²: the gradient there is zero."""
    new, old, a = (
        rows_of(20, d, seed),
        rows_of(20, d, seed + 1),
        rows_of(r, d, seed + 2),
    )
    c_new, c_old = new.mT @ new / 20, old.mT @ old / 20
    found = damping(Dense(c_new), Dense(c_old), strength, ridge).right(a)
    rho = ridge * float((c_new + strength * c_old).trace()) / d
    gradient = (found - a) @ c_new + strength * found @ c_old + rho * found
    assert gradient.norm() <= 1e-9 * (1 + strength) * float(a.norm()) * float(
        c_new.norm() + c_old.norm()
    )


@given(
    d=st.integers(2, 9),
    k=st.integers(0, 5),
    tail=st.sampled_from(["isotropic", "diagonal"]),
    seed=st.integers(0, 99),
)
def test_woodbury_equals_the_dense_inverse(d, k, tail, seed):
    """For sketches no (d, d) matrix is inverted, with the same result."""
    x, y, a = rows_of(30, d, seed), rows_of(30, d, seed + 1), rows_of(3, d, seed + 2)
    new, old = (sketched(z.mT @ z / 30, min(k, d), tail) for z in (x, y))
    assert isinstance(new, Sketch)
    by_woodbury = damping(new, old, 2.0, 1e-3).right(a)
    by_inverse = damping(Dense(new.dense()), Dense(old.dense()), 2.0, 1e-3).right(a)
    assert torch.allclose(
        by_woodbury, by_inverse, rtol=1e-8, atol=1e-9 * float(a.norm())
    )


def test_old_directions_go_and_new_ones_stay():
    """A delta on inputs that only old data has vanishes; on inputs that only new data has it stays."""
    new, old = (
        torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])),
        torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0])),
    )
    found = damping(Dense(new), Dense(old), 1.0, 1e-6).right(torch.ones(1, 4))
    assert torch.allclose(found, torch.tensor([[1.0, 1.0, 0.0, 0.0]]), atol=1e-5)


def test_factors_and_dense_deltas_agree(small, context):
    """Multiplying A or the whole delta from the right is the same."""
    model = small.network()
    ctx = context(model, {"covariance-merge": {"sketch": 0}})
    ctx.history = small.remembered(base=collect(ctx))
    ctx.data.train.inputs = ctx.data.train.inputs.flip(1)
    ctx.adapter = small.random_adapter(model)
    (made,) = with_transform(ctx, Proposal(), ctx.specs(CovarianceSpec)[0]).transforms
    f = ctx.adapter.factors("2.weight")
    delta = f.scale * f.b @ f.a
    through = f.scale * f.b @ made.right("2.weight", f.a)
    assert torch.allclose(made.delta("2.weight", delta, None), through, atol=1e-5)
    assert torch.allclose(
        made.delta("2.weight", delta[3:7], slice(3, 7)), through[3:7], atol=1e-5
    )
    assert torch.equal(made.right("unknown", f.a), f.a)


def test_without_history_nothing_is_changed(small, context):
    """The first phase of a base without calibration text is merged as trained, and a note says so."""
    ctx = context(small.network(), {"covariance-merge": {}})
    ctx.adapter = small.random_adapter(ctx.model)
    proposal = Proposal(scale=0.5)
    assert with_transform(ctx, proposal, ctx.specs(CovarianceSpec)[0]) is proposal
    assert "merged as trained" in ctx.notes[-1]


def test_recovery_offers_each_strength_once(small, context):
    """After a refusal: the strengths in order, then nothing; without history nothing at all."""
    spec = CovarianceRecoverySpec(type="covariance", strengths=(1.0, 10.0), sketch=0)
    model = small.network()
    ctx = context(model, {"covariance-merge": {"sketch": 0}})
    ctx.adapter = small.random_adapter(model)
    assert recovery(ctx, [], spec) is None
    ctx.history = small.remembered(base=collect(ctx))
    tried: list[Recovery] = []
    while (found := recovery(ctx, tried, spec)) is not None:
        tried.append(found)
    assert [r.evidence["strength"] for r in tried] == [1.0, 10.0]
    assert all(r.action == "propose" and r.proposal.transforms for r in tried)


def test_strengths_must_be_positive():
    """A recovery without a usable strength is refused where it is written."""
    with pytest.raises(ValueError, match="strengths"):
        CovarianceRecoverySpec(type="covariance", strengths=())
