"""What the matrix products use: fp32 masters, narrow copies, narrow tables; the same training."""

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from mgk import attach, merge
from mgk_core.contract.adapter import state_of
from mgk_core.contract.bundle import Tokens
from mgk_core.model.inject import put, take
from mgk_core.run.verify_merge import outputs_on, verify_merged
from mgk_hf import precision
from mgk_hf.batch import pack
from mgk_hf.bundle import HfBundle
from mgk_hf.cpu import screen
from mgk_hf.cpu.calibrate import with_screen
from mgk_hf.loading import build
from mgk_hf.network import take_apart
from mgk_hf.precision import (
    WIDENED,
    MixedLinear,
    StoredLinear,
    WideLinear,
    apply_policy,
    best_compute,
    exact,
    wide_embedding,
)
from mgk_hf.specs import HfSpec
from mgk_hf.tiny import tiny_model

STEPS = 40
IDS = tuple(range(5, 25))


class Addition(nn.Module):
    """A LoRA as a forward hook adds it: enough of an adapter to train with."""

    def __init__(self, linear):
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, linear.in_features) * 0.05)
        self.b = nn.Parameter(torch.zeros(linear.out_features, 4))
        linear.register_forward_hook(
            lambda _, args, out: out + 2 * (args[0] @ self.a.t()) @ self.b.t()
        )


def train(compute, tokenizer, sequences, *, screened=False):
    """Train additions for 40 steps; return the mean loss of every step."""
    model = tiny_model(len(tokenizer)).to(torch.bfloat16).eval().requires_grad_(False)
    apply_policy(model, compute, masters=torch.float32)
    torch.manual_seed(1)
    additions = [
        Addition(m)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n != "lm_head"
    ]
    network = take_apart(model)
    bundle = HfBundle(
        with_screen(network, tokenizer, "screened" if screened else "exact"),
        tokenizer,
        torch.device("cpu"),
    )
    optimizer = torch.optim.AdamW(
        [p for a in additions for p in a.parameters()], lr=1e-3
    )
    batch = pack([(s, s) for s in sequences])
    losses = []
    for _ in range(STEPS):
        total, count = bundle.loss(batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float((total / count).detach()))
    return torch.tensor(losses)


@pytest.mark.parametrize("way", ["bfloat16", "screened"])
def test_training_stays_within_two_hundredths_of_fp32(tokenizer, sequences, way):
    """Over 40 steps the loss of either fast way differs from exact fp32 by less than .02 at every step."""
    plain = train("float32", tokenizer, sequences)
    fast = train(
        "bfloat16" if way == "bfloat16" else "float32",
        tokenizer,
        sequences,
        screened=way == "screened",
    )
    assert plain[-1] < plain[0] - 0.3, "nothing was learnt, so nothing was tested"
    assert (plain - fast).abs().max() < 0.02


def test_mixed_linear_uses_its_master_where_it_must():
    """Inside `exact`, and where the weight itself learns, the product is fp32."""
    linear = nn.Linear(64, 32).requires_grad_(requires_grad=False)
    x = torch.randn(5, 64)
    expected = linear(x)
    linear.__class__ = MixedLinear
    narrow = linear(x)
    assert not narrow.equal(expected)
    assert (narrow - expected).norm() < 1e-2 * expected.norm()
    assert narrow.dtype == torch.float32
    with exact():
        assert linear(x).equal(expected)
    linear.weight.requires_grad_(requires_grad=True)
    assert linear(x).equal(expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64)])
@pytest.mark.parametrize("rows", [7, WIDENED, 2 * WIDENED + 1])
def test_a_wide_linear_is_fp32_with_and_without_a_graph(shape, rows, bias):
    """Widened through one buffer or as part of a graph, the product is that of the widened weight."""
    torch.manual_seed(0)
    linear = (
        nn.Linear(64, rows, bias=bias)
        .to(torch.bfloat16)
        .requires_grad_(requires_grad=False)
    )
    linear.__class__ = WideLinear
    x = torch.randn(shape)
    size = (
        float(x.abs().sum(-1).max() * linear.weight.abs().max()) + 1
    )  # no sum of 64 products is larger, bias included
    wanted = nn.functional.linear(
        x.double(), linear.weight.double(), linear.bias.double() if bias else None
    )
    for found in (linear(x), linear(x.clone().requires_grad_())):
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.detach().double(), wanted, rtol=0, atol=65 * 2**-24 * size
        )
    with torch.no_grad():
        assert linear(x.clone().requires_grad_()).equal(linear(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [3, 5, 100])
def test_a_stored_linear_is_the_product_of_its_widened_weight(
    monkeypatch, dtype, bias, block
):
    """Forward and backward, whatever rows are widened at once, on any number of leading dimensions."""
    monkeypatch.setattr(precision, "_block", lambda _: block)
    torch.manual_seed(0)
    linear = nn.Linear(7, 11, bias=bias).requires_grad_(requires_grad=False)
    linear.weight.data = linear.weight.to(dtype)
    wanted = copy.deepcopy(linear).double()
    linear.__class__ = StoredLinear
    for shape in ((7,), (5, 7), (2, 3, 7)):
        x = torch.randn(shape, requires_grad=True)
        wide = x.detach().double().requires_grad_()
        found, expected = linear(x), wanted(wide)
        assert found.dtype == torch.float32
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-5)


def test_a_stored_linear_keeps_nothing_wide_for_the_backward_pass():
    """What autograd saves of it is the weight itself."""
    linear = nn.Linear(64, 32, bias=False).to(torch.bfloat16).requires_grad_(requires_grad=False)  # fmt: skip
    linear.__class__ = StoredLinear
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t) or t, lambda t: t
    ):
        linear(torch.randn(5, 64, requires_grad=True))
    assert [t.data_ptr() for t in kept] == [linear.weight.data_ptr()]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_a_base_as_stored_computes_what_one_with_fp32_masters_does(
    saved, family, compute
):
    """Half the bytes; the same products of the same numbers, so the same losses and gradients but for rounding."""
    where = saved(family, torch.bfloat16)
    found = {}
    for dtype in ("auto", "stored"):
        bundle = build(
            HfSpec(type="hf", id=where, dtype=dtype, compute=compute),
            torch.device("cpu"),
        )
        adapter = attach(bundle.model, "lora", rank=3, alpha=5.0, targets=["all-linear"])  # fmt: skip
        for i, parameter in enumerate(adapter.parameters()):
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(i))
        batch = bundle.pack([Tokens(IDS, IDS), Tokens(IDS[:9], IDS[:9])])
        loss = bundle.loss(batch)[0]
        gradients = torch.autograd.grad(loss, adapter.parameters())
        linear = bundle.network.decoder.layers[0].mlp.up_proj.weight
        found[dtype] = (loss.detach(), torch.cat([g.flatten() for g in gradients]))
        assert linear.dtype == (torch.float32 if dtype == "auto" else torch.bfloat16)
        before = outputs_on(bundle, [batch])
        merge(bundle.model, adapter)
        held = state_of(bundle.model).residuals
        assert bool(held) == (dtype == "stored")
        assert verify_merged(bundle, adapter, [batch], before, seed=0).ok
    for one, other in zip(found["auto"], found["stored"], strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_mixed_linear_follows_its_master():
    """After the master was changed in place, as a merge does, the copy is made anew."""
    linear = nn.Linear(8, 8, bias=False).requires_grad_(requires_grad=False)
    linear.__class__ = MixedLinear
    x = torch.ones(1, 8)
    before = linear(x)
    with torch.no_grad():
        linear.weight.mul_(2)
    assert linear(x).equal(2 * before)
    with torch.no_grad():
        linear.weight.copy_(linear.weight / 2)
    assert linear(x).equal(before)


def test_the_narrow_copy_is_no_part_of_the_model():
    """The copy is neither in the state dict nor in a deep copy."""
    linear = nn.Linear(8, 8).requires_grad_(requires_grad=False)
    linear.__class__ = MixedLinear
    linear(torch.ones(1, 8))
    assert set(linear.state_dict()) == {"weight", "bias"}
    twin = copy.deepcopy(linear)
    assert twin._narrow is None
    assert twin(torch.ones(1, 8)).equal(linear(torch.ones(1, 8)))


def test_wide_embedding_is_scaled_after_widening():
    """Gemma's embedding scale is not rounded to bf16: √64 is 8, √60 is not 7.75."""
    model = tiny_model(300, hidden_size=60, head_dim=16)
    table = model.get_input_embeddings()
    expected = (table.weight.to(torch.bfloat16).float() * 60**0.5)[:5]
    model.to(torch.bfloat16)
    apply_policy(model, "float32", masters=torch.float32)
    assert type(table) is wide_embedding(type(table).__mro__[2])
    torch.testing.assert_close(table(torch.arange(5)), expected, rtol=1e-6, atol=0)


def test_adapters_go_on_converted_modules():
    """A part sits on a converted module as on any other, and the class comes back."""
    from mgk_core.model.inject import Part

    linear = nn.Linear(8, 8).requires_grad_(requires_grad=False)
    linear.__class__ = MixedLinear
    put(linear, "a", Part())
    linear(torch.ones(1, 8))
    take(linear, "a")
    assert type(linear) is MixedLinear


def test_choice_by_capability(monkeypatch):
    """bf16 products where the CPU has them in hardware, fp32 where it emulates them."""
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(
            torch.cpu, f"_is_{name}_supported", lambda: False, raising=False
        )
    assert best_compute(torch.device("cpu")) == "float32"
    monkeypatch.setattr(
        torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False
    )
    assert best_compute(torch.device("cpu")) == "bfloat16"
    assert best_compute(torch.device("meta")) == "float32"


def test_screening_is_chosen_for_large_tables_only(monkeypatch):
    """A small vocabulary is not worth an image; a CPU whose int8 products are wrong never screens."""
    large = torch.empty(32768, 4)
    assert not screen.supported(torch.empty(32768, 4, device="meta"))
    assert not screen.supported(torch.empty(1000, 4))
    assert screen.supported(large) == (screen.largest_activation() is not None)
    screen.largest_activation.cache_clear()
    right = screen._products
    monkeypatch.setattr(screen, "_products", lambda *args: right(*args).clamp(max=200))
    assert screen.largest_activation() is None
    assert not screen.supported(large)
    screen.largest_activation.cache_clear()


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="limits an x86 instruction set"
)
def test_activations_have_seven_bits_where_products_saturate():
    """In a process limited to AVX2 pairs of products saturate with eight bits, and not with seven."""
    code = "from mgk_hf.cpu.screen import _right, largest_activation as top; print(top(), _right(63))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout in ("63 True\n", "127 True\n")  # 127: AVX2 with VNNI
