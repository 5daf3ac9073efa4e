"""Gradients by hand equal autograd's: trained factors, alpha ≠ rank, any layers, any activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mgk
from mgk_core.contract.adapter import Adapter
from mgk_textmodel.bundle import ReferenceBundle
from mgk_textmodel.gradients import gradient_function
from mgk_textmodel.network import ReferenceNetwork, build
from mgk_textmodel.pairs import Pairs
from mgk_textmodel.specs import ReferenceSpec


def adapted(
    widths: tuple[int, ...], activation: str, targets: list[str], **options: Any
) -> tuple[ReferenceNetwork, Adapter]:
    """Return a network with an adapter whose factors are all away from zero."""
    network = build(
        ReferenceSpec(
            type="reference", widths=widths, activation=activation, init_std=0.3
        )
    )
    adapter = mgk.attach(network, "lora", targets=targets, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return network, adapter


def by_autograd(
    network: ReferenceNetwork, batch: Pairs, parameters: list[torch.Tensor]
) -> tuple[torch.Tensor, Any]:
    """Return the summed loss and its gradients."""
    total = ((network(batch.inputs) - batch.targets) ** 2).sum()
    return total, torch.autograd.grad(total, parameters)


@given(
    widths=st.lists(st.integers(2, 12), min_size=3, max_size=5).map(tuple),
    activation=st.sampled_from(["gelu", "relu", "tanh"]),
    rank=st.integers(1, 2),
    n=st.integers(1, 9),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_hand_derived_gradients_are_autograds(
    widths: tuple[int, ...], activation: str, rank: int, n: int, data: st.DataObject
) -> None:
    """For any widths, activation, rank and choice of layers, loss and gradients agree.

    Both ways do the same products in fp32, in another order: the relative 2-norm stays below 1e-5,
    some hundred roundings of 6e-8.
    """
    layers = range(1, len(widths))
    chosen = data.draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    network, adapter = adapted(
        widths, activation, [f"layer{i}" for i in chosen], rank=rank, alpha=3.0
    )
    generator = torch.Generator().manual_seed(n)
    batch = Pairs.of(
        torch.randn(n, widths[0], generator=generator),
        torch.randn(n, widths[-1], generator=generator),
    )
    parameters = list(adapter.parameters())
    own = gradient_function(network, adapter, parameters)
    assert own is not None
    total, expected = by_autograd(network, batch, parameters)
    found_total, count, found = own(batch)
    assert float(found_total) == pytest.approx(float(total.detach()), rel=1e-5)
    assert float(count) == n
    size = torch.cat([e.flatten() for e in expected]).norm()
    for e, f in zip(expected, found, strict=True):
        assert e.shape == f.shape
        assert (e - f).norm() <= 1e-5 * size


def test_only_the_parameters_asked_for() -> None:
    """Where A is frozen, B's gradients come alone and in the order asked for."""
    network, adapter = adapted(
        (6, 8, 4), "gelu", ["layer1", "layer2"], rank=2, alpha=3.0
    )
    parameters = [adapter.parameters()[3], adapter.parameters()[1]]
    own = gradient_function(network, adapter, parameters)
    assert own is not None
    batch = Pairs.of(torch.randn(5, 6), torch.randn(5, 4))
    _, expected = by_autograd(network, batch, parameters)
    for e, f in zip(expected, own(batch)[2], strict=True):
        assert torch.allclose(e, f, rtol=1e-4, atol=1e-5)


def test_they_follow_the_weights_as_they_stand() -> None:
    """After the adapter's and the base's tensors were written to, the gradients are the new ones."""
    network, adapter = adapted((6, 8, 4), "gelu", ["layer1"], rank=2, alpha=3.0)
    parameters = list(adapter.parameters())
    own = gradient_function(network, adapter, parameters)
    assert own is not None
    batch = Pairs.of(torch.randn(5, 6), torch.randn(5, 4))
    before = [g.clone() for g in own(batch)[2]]
    with torch.no_grad():
        for p in (*parameters, network.layers[1].weight):
            p.mul_(2)
    _, expected = by_autograd(network, batch, parameters)
    for b, e, f in zip(before, expected, own(batch)[2], strict=True):
        assert torch.allclose(e, f, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(b, f, rtol=1e-2)


@pytest.mark.parametrize(
    ("type_", "options"),
    [
        ("dora", {}),
        ("lora", {"init": "pissa"}),
        ("lora", {"bias": True}),
        ("lora", {"dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_other_adapters_are_left_to_autograd(
    type_: str, options: dict[str, Any]
) -> None:
    """What is more than scale · B @ A in fp32 is not offered."""
    network = build(ReferenceSpec(type="reference"))
    adapter = mgk.attach(network, type_, targets=["layer1"], **options)
    bundle = ReferenceBundle(network, torch.device("cpu"))
    assert bundle.gradient_function(adapter, adapter.parameters()) is None


def test_two_adapters_are_left_to_autograd() -> None:
    """A second adapter on the model changes the forward pass, so nothing is offered."""
    network = build(ReferenceSpec(type="reference"))
    one = mgk.attach(network, "lora", name="one", targets=["layer1"])
    assert gradient_function(network, one, one.parameters()) is not None
    mgk.attach(network, "lora", name="two", targets=["layer1"])
    assert gradient_function(network, one, one.parameters()) is None
