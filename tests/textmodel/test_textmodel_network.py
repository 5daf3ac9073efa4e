"""The reference network: exact, addressable, saved and loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

import mgk
from mgk_core.contract.bundle import Bundle, LossPerItem, OwnGradients
from mgk_core.contract.errors import InputError
from mgk_textmodel.network import build, load, save
from mgk_textmodel.pairs import Pairs
from mgk_textmodel.plugin import mgk_build_model
from mgk_textmodel.specs import ReferenceSpec

SPEC = ReferenceSpec(type="reference")


def test_it_is_the_reference_network() -> None:
    """64 → 128 GELU → 128 GELU → 32 with 28,960 parameters, biases zero, and 3,584 trainable under the default LoRA."""
    network = build(SPEC)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes == {
        "layer1.weight": (128, 64), "layer1.bias": (128,), "layer2.weight": (128, 128), "layer2.bias": (128,),
        "layer3.weight": (32, 128), "layer3.bias": (32,),
    }  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) == 28_960
    assert all(not layer.bias.any() for layer in network.layers)
    adapter = mgk.attach(network, "lora", rank=8, alpha=16, targets=["layer[12]"])
    assert sum(p.numel() for p in adapter.parameters()) == 3_584


def test_it_computes_what_the_reference_computes() -> None:
    """The forward pass is W₃ gelu(W₂ gelu(W₁ x)), bit for bit as torch's own Sequential."""
    network = build(SPEC)
    one, two, three = network.layers
    plain = nn.Sequential(one, nn.GELU(), two, nn.GELU(), three)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(x), plain(x))
    by_hand = gelu(gelu(x @ one.weight.T) @ two.weight.T) @ three.weight.T
    assert torch.allclose(network(x), by_hand, rtol=1e-5, atol=1e-6)


def test_weights_have_the_asked_spread_and_seed() -> None:
    """Weights are init_std · N(0, 1), the same for one seed, others for another."""
    weight = build(ReferenceSpec(type="reference", init_std=0.3)).layers[1].weight
    # the standard deviation of a sample of 16,384 has a relative standard error of 1 / √(2 n) = .55 %
    assert float(weight.detach().std()) == pytest.approx(
        0.3, rel=5 / math.sqrt(2 * weight.numel())
    )
    assert torch.equal(build(SPEC).layers[0].weight, build(SPEC).layers[0].weight)
    other = build(ReferenceSpec(type="reference", seed=1))
    assert not torch.equal(build(SPEC).layers[0].weight, other.layers[0].weight)


@pytest.mark.parametrize(
    ("activation", "act"), [("relu", torch.relu), ("tanh", torch.tanh)]
)
def test_widths_and_activation_have_an_effect(activation: str, act: object) -> None:
    """Any number of layers of any width, and each activation."""
    network = build(
        ReferenceSpec(type="reference", widths=(3, 5, 2), activation=activation)
    )
    x = torch.randn(4, 3)
    expected = act(x @ network.layers[0].weight.T) @ network.layers[1].weight.T  # type: ignore[operator]
    assert torch.allclose(network(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(4,), (4, 0, 2)])
def test_impossible_widths_are_refused(widths: tuple[int, ...]) -> None:
    """Two or more positive widths are needed."""
    with pytest.raises(ValueError, match="widths"):
        ReferenceSpec(type="reference", widths=widths)


def test_the_loss_is_summed_over_the_outputs() -> None:
    """Squared error summed over outputs and examples, and the number of examples beside it."""
    bundle = mgk_build_model(SPEC, torch.device("cpu"))
    assert isinstance(bundle, Bundle)
    assert isinstance(bundle, OwnGradients)
    x, y = torch.randn(7, 64), torch.randn(7, 32)
    total, count = bundle.loss(Pairs.of(x, y))
    assert float(total) == pytest.approx(
        float(((bundle.model(x) - y) ** 2).sum()), rel=1e-5
    )
    assert float(count) == 7
    assert torch.equal(
        bundle.outputs(Pairs.of(x, y), torch.tensor([2, 0])), bundle.model(x[[2, 0]])
    )
    assert bundle.valid(Pairs.of(x, y)) is None


def test_many_items_at_once_have_the_loss_of_each_alone() -> None:
    """Items of any sizes: the same sums and counts as one by one, up to fp32's rounding of a sum."""
    bundle = mgk_build_model(SPEC, torch.device("cpu"))
    assert isinstance(bundle, LossPerItem)
    items = [Pairs.of(torch.randn(n, 64), torch.randn(n, 32)) for n in (1, 3, 2, 1)]
    sums, counts = bundle.losses(items)
    alone = [bundle.loss(item) for item in items]
    assert sums.tolist() == pytest.approx([float(s) for s, _ in alone], rel=1e-5)
    assert counts.tolist() == [1, 3, 2, 1]


def test_the_base_is_frozen_and_refuses_to_score_options() -> None:
    """No parameter trains, and a question with options is an error that says what to use."""
    bundle = mgk_build_model(SPEC, torch.device("cpu"))
    assert bundle is not None
    assert not any(p.requires_grad for p in bundle.model.parameters())
    assert not bundle.model.training
    with pytest.raises(InputError, match="squared_error"):
        bundle.score([object()])


def test_saving_and_loading_gives_the_same_bits(tmp_path: Path) -> None:
    """What is saved is safetensors and JSON, and loads into the same function."""
    network = build(
        ReferenceSpec(type="reference", widths=(4, 6, 2), activation="tanh")
    )
    save(network, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again, x = load(tmp_path), torch.randn(3, 4)
    assert torch.equal(again(x), network(x))
    assert not again.training


def test_a_foreign_directory_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Missing files, broken JSON and other tools' configurations are told apart."""
    with pytest.raises(InputError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(InputError, match="another tool"):
        load(tmp_path)
    save(build(SPEC), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path)
