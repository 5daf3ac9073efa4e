"""Each key of the adapter's table has its effect, and wrong values are refused."""

import math

import pytest
import torch
from torch import nn

from mgk_core.contract.errors import InputError
from mgk_core.testing.history import shake
from mgk_core.testing.zoo import make


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 12), nn.GELU(), nn.Linear(12, 5, bias=False))


def test_rank_and_alpha_by_pattern(put_on):
    """The first pattern that matches gives rank and alpha; scale is alpha / rank."""
    adapter = put_on(
        two_layers(),
        rank=4,
        alpha=6.0,
        rank_pattern={"2": 2, "*": 3},
        alpha_pattern={"0.weight": 9.0},
    )
    first, second = adapter.pair("0.weight"), adapter.pair("2.weight")
    assert (first.a.shape, first.b.shape, first.scale) == ((3, 9), (12, 3), 3.0)
    assert (second.a.shape, second.b.shape, second.scale) == ((2, 12), (5, 2), 3.0)


def test_rslora_divides_by_the_root_of_the_rank(put_on):
    """scale = alpha / √rank."""
    adapter = put_on(two_layers(), rank=4, alpha=6.0, rslora=True)
    assert adapter.pair("0.weight").scale == 3.0


@pytest.mark.parametrize("std", [0.01, 0.2])
def test_gaussian_draws_with_the_given_spread(std, put_on):
    """A ~ std · N(0, 1), B = 0."""
    adapter = put_on(nn.Sequential(nn.Linear(900, 80)), rank=40, init_std=std)
    pair = adapter.pair("0.weight")
    # 36 000 draws: the standard error of the spread is 0.4 %
    assert abs(pair.a.std().item() / std - 1) < 0.02
    assert not pair.b.any()


def test_kaiming_is_that_of_a_linear_layer(put_on):
    """A ~ U(−1/√in, 1/√in), as nn.Linear begins and as PEFT does."""
    pair = put_on(nn.Sequential(nn.Linear(400, 80)), rank=50, init="kaiming").pair(
        "0.weight"
    )
    assert 0.99 / 20 < pair.a.abs().max() <= 1 / 20
    assert abs(pair.a.std().item() * 20 * math.sqrt(3) - 1) < 0.02


def test_orthogonal_rows_are_orthonormal(put_on):
    """A Aᵀ = 1."""
    pair = put_on(nn.Sequential(nn.Linear(30, 20)), rank=6, init="orthogonal").pair(
        "0.weight"
    )
    torch.testing.assert_close(pair.a @ pair.a.t(), torch.eye(6), rtol=0, atol=1e-5)


def test_pissa_takes_the_largest_singular_directions(put_on):
    """scale · B₀A₀ is the best approximation of W of that rank."""
    model = two_layers()
    pair = put_on(model, rank=3, alpha=7.0, init="pissa").pair("0.weight")
    u, s, vh = torch.linalg.svd(model[0].weight)
    best = (u[:, :3] * s[:3]) @ vh[:3]
    torch.testing.assert_close(
        pair.scale * pair.b0 @ pair.a0, best, rtol=1e-4, atol=1e-5
    )


def test_every_device_begins_alike(put_on):
    """The same seed gives the same factors; another seed gives others."""
    one, two, other = (put_on(two_layers(), seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["0.weight/a"], other["0.weight/a"])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", "float32"), ("bfloat16", "bfloat16"), ("float64", "float64")],
)
def test_dtype_of_the_factors(dtype, expected, put_on):
    """auto is fp32 on any base but float64."""
    adapter = put_on(two_layers().bfloat16(), dtype=dtype)
    assert {p.dtype for p in adapter.parameters()} == {getattr(torch, expected)}
    shake(adapter)
    assert (
        put_on(two_layers().double(), dtype="auto").parameters()[0].dtype
        == torch.float64
    )


@pytest.mark.parametrize(
    "kind", ["linear", "conv1d", "grouped", "transposed", "attention"]
)
def test_a_trained_bias_is_merged_into_the_bias(kind, put_on):
    """bias = true adds scale · bias to the output, and names the base's bias as a target."""
    case = make(kind, dtype=torch.float64)
    for name, parameter in case.model.named_parameters():
        if "bias" in name:
            parameter.data.normal_()
    adapter = put_on(case.model, bias=True)
    shake(adapter)
    assert sum("bias" in n for n in adapter.targets()) == (
        2 if kind == "attention" else 1
    )
    x = case.inputs(2)
    live = case.model(x)
    new = {
        n: adapter.merged_weight(n, t.parameter.detach().clone())
        for n, t in adapter.targets().items()
    }
    for name, target in adapter.targets().items():
        target.parameter.data.copy_(new[name])
    with adapter.disabled():
        torch.testing.assert_close(case.model(x), live, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"2": 0}}, "target 2: expected a rank >= 1, got 0"),
        ({"bias": True}, "target 2: bias = true, but Linear has no bias"),
        (
            {"bias": True, "type": "dora", "targets": ("0",)},
            "no meaning with type = 'dora'",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(options, message, put_on):
    """The message says where and what to do; the model is untouched."""
    model = two_layers()
    with pytest.raises(InputError, match=message):
        put_on(model, **options)
    assert [type(m) for m in model] == [nn.Linear, nn.GELU, nn.Linear]


def test_an_embedding_that_rewrites_its_weight_is_refused(put_on):
    """max_norm changes the weight in the forward pass: no adapter can be exact there."""
    with pytest.raises(InputError, match="max_norm"):
        put_on(nn.Sequential(nn.Embedding(5, 4, max_norm=1.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight/a"), "missing 0.weight/a"),
        (lambda s: s.update(x=torch.zeros(1)), "unknown x"),
        (
            lambda s: s.update({"0.weight/a": torch.zeros(2, 9)}),
            r"0.weight/a: expected shape \(3, 9\), got \(2, 9\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message, put_on):
    """Missing, unknown and misshapen keys are named; the adapter keeps its own state."""
    adapter = put_on(two_layers())
    state = {k: v.clone() + 1 for k, v in adapter.state_dict().items()}
    change(state)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    with pytest.raises(InputError, match=message):
        adapter.load_state_dict(state)
    assert all(torch.equal(before[k], v) for k, v in adapter.state_dict().items())


def test_a_state_comes_back_bit_for_bit(put_on):
    """state_dict then load_state_dict is the same adapter."""
    case = make("mixed", layers=3)
    adapter = put_on(case.model, init="pissa")
    shake(adapter)
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    x = case.inputs(1)
    live = case.model(x)
    shake(adapter, seed=3)
    adapter.load_state_dict(state)
    assert torch.equal(case.model(x), live)
