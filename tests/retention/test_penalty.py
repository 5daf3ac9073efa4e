"""The quadratic form of drift-guard against its dense formula."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_retention.moments import Dense, Sketch
from mgk_retention.penalty import energy, factored_energy, normalised, penalty

KINDS = st.sampled_from(["dense", "sketch"])


def moment(
    kind: str, layers: int, d: int, generator: torch.Generator
) -> Dense | Sketch:
    x = torch.randn(layers, d, 3, dtype=torch.float64, generator=generator)
    tail = torch.rand(layers, d, dtype=torch.float64, generator=generator)
    made = Sketch(x, tail)
    return made if kind == "sketch" else Dense(made.dense())


@given(
    layers=st.integers(1, 3), r=st.integers(1, 4), inside=st.integers(2, 7), outside=st.integers(2, 7),
    kinds=st.tuples(KINDS, KINDS), seed=st.integers(0, 99),
)  # fmt: skip
def test_factored_equals_dense_with_gradients(layers, r, inside, outside, kinds, seed):
    """Value and both gradients are autograd's of Σ w tr(G ΔW C ΔWᵀ) with ΔW written out."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(
        layers, r, inside, dtype=torch.float64, generator=generator
    ).requires_grad_()
    b = torch.randn(
        layers, outside, r, dtype=torch.float64, generator=generator
    ).requires_grad_()
    weight = torch.rand(layers, dtype=torch.float64, generator=generator)
    c, g = (
        moment(kinds[0], layers, inside, generator),
        moment(kinds[1], layers, outside, generator),
    )
    delta = b @ a
    dense = torch.einsum("l,lii->", weight, g.dense() @ delta @ c.dense() @ delta.mT)
    expected = torch.autograd.grad(dense, [a, b])
    value, of_a, of_b = penalty(a.detach(), b.detach(), c, g, weight)
    assert torch.isclose(value, dense.detach(), rtol=1e-9)
    assert torch.allclose(
        of_a, expected[0], rtol=1e-9, atol=1e-9 * float(expected[0].norm())
    )
    assert torch.allclose(
        of_b, expected[1], rtol=1e-9, atol=1e-9 * float(expected[1].norm())
    )
    assert torch.allclose(factored_energy(c, g, a, b), energy(c, g, delta), rtol=1e-9)


@given(kind=KINDS, share=st.floats(0, 1), d=st.integers(1, 8), seed=st.integers(0, 99))
def test_normalised_gradients_have_trace_one(kind, share, d, seed):
    """Ĝ is free of the gradients' unit: scaling G changes nothing, its trace is 1."""
    g = moment(kind, 1, d, torch.Generator().manual_seed(seed))
    made = normalised(g, share)
    assert torch.isclose(made.trace(), torch.ones(1, dtype=torch.float64)).all()
    assert torch.allclose(
        made.dense(), normalised(g.scaled(1e-6), share).dense(), atol=1e-12
    )


def test_without_gradients_every_output_counts_alike():
    """Where the old loss had no gradient at all, only the identity's share is left."""
    made = normalised(Dense(torch.zeros(4, 4)), 0.5)
    assert torch.equal(made.dense(), torch.eye(4) * 0.5 / 4)
