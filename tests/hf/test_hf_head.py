"""The chunked head: the same loss and gradient as full cross-entropy."""

import pytest
import torch
from torch import nn

from mgk_hf import head as module
from mgk_hf.head import Head, Table, head_pass
from mgk_hf.precision import WideLinear

N, D, V = 77, 32, 3001


def make(*, bias=False, dtype=torch.float32):
    """A head with logits of a realistic spread, hidden states, labels."""
    torch.manual_seed(0)
    linear = nn.Linear(D, V, bias=bias).requires_grad_(False)
    linear.weight.mul_(20)
    if dtype != torch.float32:
        linear = linear.to(dtype)
        linear.__class__ = WideLinear
    return linear, torch.randn(N, D, requires_grad=True), torch.randint(0, V, (N,))


def reference(linear, hidden, labels, softcap=None, scale=1.0):
    """Full logits, in fp64."""
    bias = None if linear.bias is None else linear.bias.double()
    z = nn.functional.linear(hidden.double() * scale, linear.weight.double(), bias)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return nn.functional.cross_entropy(z, labels, reduction="sum")


def bound(linear, hidden):
    """What fp32 may lose in a logit: √D roundings of products of this size, a few times over."""
    size = float(
        hidden.detach().norm(dim=1).max()
        * linear.weight.detach().float().norm(dim=1).max()
    )
    return 8 * torch.finfo(torch.float32).eps * size * D**0.5


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [512, 1 << 20])
def test_equal_to_full_cross_entropy(monkeypatch, softcap, bias, scale, dtype, block):
    """Value and gradient are those of full cross-entropy, whatever the size of a block."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * N * block)
    linear, hidden, labels = make(bias=bias, dtype=dtype)
    got = Head(linear, softcap, scale).nll(hidden, labels)
    expected = reference(linear, hidden, labels, softcap, scale)
    (gradient,) = torch.autograd.grad(got, hidden)
    (wanted,) = torch.autograd.grad(expected, hidden)
    assert abs(got.item() - expected.item()) <= N * bound(linear, hidden)
    row = float(linear.weight.float().norm(dim=1).max())
    assert (gradient - wanted).abs().max() <= bound(linear, hidden) * row * scale


def test_gradient_is_scaled_by_what_follows():
    """The gradient made in the forward pass is multiplied by the loss's own gradient."""
    linear, hidden, labels = make()
    (once,) = torch.autograd.grad(Head(linear).nll(hidden, labels), hidden)
    (tripled,) = torch.autograd.grad(3 * Head(linear).nll(hidden, labels), hidden)
    torch.testing.assert_close(tripled, 3 * once)


def test_trainable_head_takes_the_plain_path():
    """A head weight that learns gets its gradient, and the hidden states theirs."""
    linear, hidden, labels = make(bias=True)
    linear.requires_grad_(requires_grad=True)
    head = Head(linear)
    assert not head.fast
    got = torch.autograd.grad(
        head.nll(hidden, labels), [hidden, linear.weight, linear.bias]
    )
    expected = torch.autograd.grad(
        reference(linear, hidden, labels), [hidden, linear.weight, linear.bias]
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


def test_adapter_on_the_head_is_seen():
    """A part on the head makes it slow and right: its parameters get gradients."""
    from mgk_core.model.inject import Part, put, take

    class Shift(Part):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(V))

        def adjust(self, module, args, output):
            return output + self.shift

    linear, hidden, labels = make()
    plain = Head(linear).nll(hidden, labels)
    part = Shift()
    put(linear, "a", part)
    head = Head(linear)
    adapted = head.nll(hidden, labels)
    (gradient,) = torch.autograd.grad(adapted, part.shift)
    torch.testing.assert_close(adapted, plain, rtol=1e-5, atol=0)
    counts = torch.bincount(labels, minlength=V).float()
    expected = torch.softmax(hidden @ linear.weight.t(), 1).sum(0) - counts
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-4, atol=1e-5)
    take(linear, "a")
    assert Head(linear).fast


def test_nothing_to_learn_gives_zero():
    """Without a label the loss is 0, and its gradient 0 rather than an error."""
    linear, hidden, _ = make()
    loss = Head(linear).nll(hidden[:0], torch.empty(0, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.item() == 0
    assert not gradient.any()


def test_log_probabilities_of_shared_states():
    """Several tokens can be asked of one state; each gets its own log-probability."""
    linear, hidden, _ = make()
    place = torch.tensor([0, 0, 5, 3, 5])
    tokens = torch.tensor([7, 8, 9, V - 1, 0])
    got = Head(linear).logprob(hidden.detach(), place, tokens)
    expected = torch.log_softmax(hidden.detach() @ linear.weight.t(), 1)[place, tokens]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_full_logits_never_exist(monkeypatch):
    """The largest tensor that the loss makes is one block, far below (N, V)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel()
                for t in (out if isinstance(out, tuple) else (out,))
                if isinstance(t, torch.Tensor)
            )
            return out

    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * N * 512)
    linear, hidden, labels = make()
    with Watch():
        Head(linear).nll(hidden, labels)
    assert max(s for s in sizes if s != V * D and s != D * V) <= N * 512


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_products_of_sixteen_bits_are_those_of_fp32_on_the_same_numbers(
    monkeypatch, softcap
):
    """As on CUDA: logits agree up to fp32's rounding, gradients up to the rounding of the probabilities."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5000, 48, generator=generator).bfloat16()
    hidden = torch.randn(37, 48, generator=generator).bfloat16().float()
    labels = torch.randint(5000, (37,), generator=generator)
    table = Table(weight, torch.randn(5000, generator=generator), softcap)
    wide = head_pass(hidden, table, labels, gradient=True)
    monkeypatch.setattr(Table, "products", torch.bfloat16)
    narrow = head_pass(hidden, table, labels, gradient=True)
    torch.testing.assert_close(narrow[0], wide[0], rtol=1e-5, atol=1e-5)
    # Each probability is off by at most 2⁻⁸ of itself: Σ p |W| 2⁻⁸ bounds the whole.
    logits = hidden @ weight.float().t() + table.bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    bound = torch.softmax(logits, 1) @ weight.float().abs() * 2.0**-8 + 1e-5
    assert bool(((narrow[1] - wide[1]).abs() <= bound).all())
