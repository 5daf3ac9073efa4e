"""What is kept for the backward pass: fewer bytes, the same function, nearly the same gradients."""

import pytest
import torch
from torch import nn

from mgk_hf.cpu.lean import LeanGated, LeanNorm, kept_narrow, kept_whole, make_lean

BF16 = 2.0**-9  # half a unit in the last place of a bf16 number, relative to it


class Norm(nn.Module):
    """Gemma's RMS norm, written out."""

    def __init__(self, width=64, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.randn(width) * 0.1, requires_grad=False)

    def forward(self, x):
        return (
            x
            * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
            * (1 + self.weight)
        )


class Scaled(Norm):
    """The same attributes, another function: the weight is not centred on one."""

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Gated(nn.Module):
    def __init__(self, act, width=64, inner=160):
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(width, inner, bias=False) for _ in range(2)
        )
        self.down_proj, self.act_fn = nn.Linear(inner, width, bias=False), act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def gradient(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


@pytest.mark.parametrize(
    "make", [Norm, lambda: Gated(nn.GELU(approximate="tanh"))], ids=["norm", "gated"]
)
def test_a_lean_module_computes_what_it_replaces(make):
    """Values and gradients agree to fp32's rounding; the class says what it is."""
    torch.manual_seed(0)
    module, x = make(), torch.randn(3, 7, 64)
    before = gradient(module, x)
    assert make_lean(nn.Sequential(module))
    assert isinstance(module, (LeanNorm, LeanGated))
    for mine, theirs in zip(gradient(module, x), before, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max())
        )


@pytest.mark.parametrize(
    "module",
    [Scaled(), Gated(nn.SiLU()), Gated(nn.GELU())],
    ids=["scaled", "silu", "erf"],
)
def test_a_module_that_computes_something_else_is_left_alone(module):
    """Modules are taken by what they compute, not by the names of their attributes."""
    cls = type(module)
    assert make_lean(nn.Sequential(module)) == []
    assert type(module) is cls


def test_narrow_activations_take_half_the_bytes_and_round_the_gradient_only():
    """The value is the same to the bit; the gradient differs, by bf16's rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(m for _ in range(4) for m in (nn.Linear(128, 128), nn.Tanh()))
    )
    x = torch.randn(512, 128)

    def gradients():
        y = net(x).square().sum()
        return y.detach(), torch.autograd.grad(y, list(net.parameters()))

    value, wide = gradients()
    with kept_narrow():
        y = net(x).square().sum()
    narrow = torch.autograd.grad(y, list(net.parameters()))
    assert torch.equal(y.detach(), value)
    assert not all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))
    for mine, theirs in zip(narrow, wide, strict=True):
        assert (
            mine - theirs
        ).norm() < 8 * 4 * BF16 * theirs.norm()  # two factors a layer are rounded


def test_a_tensor_that_many_ask_for_is_kept_once():
    """Layers that share their input share what is kept of it."""
    layers = [nn.Linear(128, 128, bias=False) for _ in range(4)]
    x = torch.randn(2, 256, 128, requires_grad=True) * 1.0
    with kept_narrow() as kept:
        outs = [layer(x) for layer in layers]
    (_, narrow), *others = kept.values()
    assert not others
    assert torch.equal(narrow.view_as(x), x.detach().bfloat16())
    assert len(torch.autograd.grad(sum(o.sum() for o in outs), x)) == 1


def test_what_must_stay_whole_stays():
    """Parameters, small tensors and what a `kept_whole` block saves are kept as they are."""
    weight = nn.Parameter(torch.randn(256, 256))
    x = torch.randn(256, 256, requires_grad=True) * 1.0
    with kept_narrow():
        product = x @ weight
        with kept_whole():
            other = x @ weight
        small = (x[:2] * 1.0) @ weight
    assert torch.equal(product.grad_fn._saved_mat2, weight)
    assert not torch.equal(product.grad_fn._saved_self, x)
    assert torch.equal(other.grad_fn._saved_self, x)
    assert torch.equal(small.grad_fn._saved_self, x[:2])
