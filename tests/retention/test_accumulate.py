"""Moments added up batch by batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_retention.accumulate import (
    Counts,
    Projected,
    Whole,
    columns,
    make_accumulator,
    nystrom,
    test_matrix,
)
from mgk_retention.moments import Sketch

CPU = torch.device("cpu")
omega = test_matrix  # pytest would take the imported name for a test
del test_matrix


def decaying(n: int, d: int, seed: int) -> torch.Tensor:
    """Rows whose moment has eigenvalues that fall as those of activations do."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    return torch.randn(n, d, generator=generator) * torch.logspace(0, -3, d) @ basis


@given(cuts=st.lists(st.integers(1, 59), max_size=4), seed=st.integers(0, 20))
def test_batches_do_not_matter(cuts, seed):
    """The mean over all rows is the same however they were split."""
    x = decaying(60, 8, seed)
    for make in (
        lambda: Whole(8, None, "diagonal", CPU),
        lambda: Projected(8, 2, "diagonal", CPU),
    ):
        one, many = make(), make()
        one.add(x)
        for piece in torch.tensor_split(x, sorted(cuts)):
            many.add(piece)
        assert many.positions == 60
        assert torch.allclose(one.mean().dense(), many.mean().dense(), atol=1e-5)


def test_whole_mean_is_the_second_moment():
    """Σ xᵀx / n, no centring."""
    x = decaying(50, 8, 0)
    made = Whole(8, None, "isotropic", CPU)
    made.add(x)
    assert torch.allclose(made.mean().dense(), x.mT @ x / 50, atol=1e-6)


def test_projection_finds_the_top():
    """What k columns of the projection miss is at most (1 + k / (m − k − 1)) times what the best k
    eigenvectors miss (Tropp et al. 2017, theorem 4.1, trace norm); trace and diagonal are exact."""
    x, k, m = decaying(2000, 300, 1), 16, columns(16)
    made = Projected(300, k, "diagonal", CPU)
    made.add(x)
    exact, found = x.mT @ x / 2000, made.mean()
    missed = torch.linalg.eigvalsh(exact - found.factor @ found.factor.mT).abs().sum()
    best = torch.linalg.eigvalsh(exact)[:-k].sum()
    assert missed <= (1 + k / (m - k - 1)) * best
    assert torch.allclose(found.dense().diagonal(), exact.diagonal(), rtol=1e-3)


@given(d=st.integers(4, 30), rank=st.integers(1, 4), seed=st.integers(0, 20))
def test_nystrom_is_exact_on_low_rank(d, rank, seed):
    """A matrix of rank ≤ m is found whole, also where m is far more than its rank."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, d, generator=generator)
    matrix, test = x.mT @ x, omega(d, min(d, rank + 3))
    values, vectors = nystrom(matrix @ test, test)
    # Y is fp32 and the shift eps ‖Y‖ √d; Ω sees about m / d of each direction, so d / m more comes back.
    bound = (
        20
        * torch.finfo(torch.float32).eps
        * d**0.5
        * d
        / test.shape[1]
        * float(matrix.norm())
    )
    assert (vectors * values @ vectors.mT - matrix).norm() <= bound
    assert (values[:-1] >= values[1:]).all()


def test_a_rough_projection_does_not_fail():
    """With Y rounded to bf16, as a device's fast products would, nothing breaks and nothing grows."""
    x = decaying(500, 64, 2)
    matrix, test = x.mT @ x / 500, omega(64, 20)
    values, vectors = nystrom((matrix @ test).bfloat16().float(), test)
    assert values.isfinite().all()
    assert vectors.isfinite().all()
    assert values[0] <= 1.05 * torch.linalg.eigvalsh(matrix)[-1]


def test_nothing_seen_is_nothing():
    """An accumulator without rows, or of zeros, ends as zero."""
    assert float(Projected(300, 4, "isotropic", CPU).mean().trace()) == 0
    made = Projected(300, 4, "isotropic", CPU)
    made.add(torch.zeros(5, 300))
    assert float(made.mean().trace()) == 0


def test_ids_count_as_one_hot_inputs():
    """An embedding's moment is the diagonal of the ids' frequencies."""
    made = Counts(6, CPU)
    made.add(torch.tensor([[0], [5], [5], [2]]))
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 5, 5, 2]), 6).float()
    assert torch.equal(made.mean().dense(), one_hot.mT @ one_hot / 4)


def test_the_projection_is_used_only_where_it_saves():
    """Small or wanted whole: a matrix; large and sketched: a projection."""
    assert isinstance(make_accumulator(4 * columns(16), 16, "isotropic", CPU), Whole)
    assert isinstance(
        make_accumulator(4 * columns(16) + 1, 16, "isotropic", CPU), Projected
    )
    assert isinstance(make_accumulator(100_00, None, "isotropic", CPU), Whole)
    small = make_accumulator(5, 16, "isotropic", CPU)
    small.add(torch.eye(5))
    moment = small.mean()
    assert isinstance(moment, Sketch)
    assert moment.factor.shape == (5, 5)
