"""Second moments, whole and sketched, answer as the matrices that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_retention.moments import Dense, Sketch, compressed, sketched, stacked, total

EPS = torch.finfo(torch.float64).eps


def psd(d: int, *, seed: int, rank: int | None = None) -> torch.Tensor:
    """A random second moment in float64."""
    x = torch.randn(
        rank or 2 * d,
        d,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    return x.mT @ x / len(x)


def sketch(d: int, k: int, *, seed: int) -> Sketch:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, k, dtype=torch.float64, generator=generator)
    return Sketch(factor, torch.rand(d, dtype=torch.float64, generator=generator))


@given(
    d=st.integers(2, 12),
    k=st.integers(0, 12),
    n=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_sketch_answers_as_its_matrix(d, k, n, seed):
    """Products, trace, scaling and added identity of a sketch are those of V Vᵀ + diag(tail)."""
    m = sketch(d, min(k, d), seed=seed)
    whole = Dense(m.dense())
    x = torch.randn(
        n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)
    )
    bound = 50 * d * EPS * float(whole.matrix.norm()) * float(x.norm())
    assert (m.right(x) - whole.right(x)).norm() <= bound
    assert abs(float(m.trace() - whole.trace())) <= bound + 50 * d * EPS * float(
        whole.trace()
    )
    changed = m.scaled(3.0).plus_identity(0.5).dense()
    assert torch.allclose(
        changed, whole.scaled(3.0).plus_identity(0.5).dense(), rtol=1e-12, atol=1e-12
    )


@given(
    d=st.integers(2, 12),
    k=st.integers(0, 12),
    tail=st.sampled_from(["isotropic", "diagonal"]),
    seed=st.integers(0, 99),
)
def test_sketching_keeps_trace_and_top(d, k, tail, seed):
    """A sketch has the matrix's trace; along kept eigenvectors an isotropic one has its values."""
    k = min(k, d)
    matrix = psd(d, seed=seed)
    m = sketched(matrix, k, tail)
    assert torch.isclose(m.trace(), matrix.trace(), rtol=1e-10)
    assert (m.tail >= 0).all()
    if tail == "isotropic" and k:
        values, vectors = torch.linalg.eigh(matrix)
        top = vectors[:, -k:]
        assert torch.allclose(
            top.mT @ m.dense() @ top, values[-k:].diag(), atol=1e-9 * float(values[-1])
        )


@given(
    d=st.integers(2, 12),
    tail=st.sampled_from(["isotropic", "diagonal"]),
    seed=st.integers(0, 99),
)
def test_sketch_of_all_eigenvectors_is_exact(d, tail, seed):
    """With k = d nothing is lost."""
    matrix = psd(d, seed=seed)
    assert torch.allclose(
        sketched(matrix, d, tail).dense(), matrix, atol=1e-10 * float(matrix.norm())
    )


@given(
    d=st.integers(3, 12),
    k=st.integers(1, 4),
    tail=st.sampled_from(["isotropic", "diagonal"]),
    seed=st.integers(0, 99),
)
def test_compressing_keeps_the_trace(d, k, tail, seed):
    """Fewer columns, the same trace, still positive semi-definite."""
    wide = Sketch(
        sketch(d, d, seed=seed).factor, torch.full((d,), 0.3, dtype=torch.float64)
    )
    small = compressed(wide, min(k, d), tail)
    assert small.factor.shape[1] <= k
    assert torch.isclose(small.trace(), wide.trace(), rtol=1e-10)
    assert torch.linalg.eigvalsh(small.dense()).min() >= -1e-10 * float(wide.trace())


def test_compressing_a_sketch_equals_sketching_its_matrix():
    """Where the tail is even, compressing V Vᵀ + τ I to k columns keeps what sketching the whole keeps."""
    wide = Sketch(
        sketch(9, 9, seed=3).factor, torch.full((9,), 0.3, dtype=torch.float64)
    )
    small, direct = (
        compressed(wide, 4, "isotropic"),
        sketched(wide.dense(), 4, "isotropic"),
    )
    assert torch.allclose(
        small.dense(), direct.dense(), atol=1e-10 * float(wide.trace())
    )


def test_total_of_sketches_is_the_sum():
    """Without a limit the sum of sketches is exact; one whole matrix makes the sum whole."""
    parts = [sketch(7, 3, seed=s) for s in range(3)]
    expected = sum(p.dense() for p in parts)
    assert torch.allclose(total(parts, None, "diagonal").dense(), expected)
    mixed = total([*parts, Dense(psd(7, seed=9))], 2, "diagonal")
    assert isinstance(mixed, Dense)
    assert torch.allclose(mixed.matrix, expected + psd(7, seed=9))


def test_stacks_pad_narrow_sketches_and_refuse_mixtures():
    """A stack of sketches answers layer by layer; whole matrices and sketches do not mix."""
    parts = [sketch(7, 3, seed=0), sketch(7, 5, seed=1)]
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    found = stacked(parts).right(x)
    for i, part in enumerate(parts):
        assert torch.allclose(found[i], part.right(x[i]))
    with pytest.raises(TypeError, match="one form"):
        stacked([parts[0], Dense(psd(7, seed=2))])
