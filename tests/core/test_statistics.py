"""What plugins are shown of each layer: inputs, gradients, padding left out, the base alone."""

import pytest
import torch
from torch import nn

from mgk_core.contract.adapter import state_of
from mgk_core.model.statistics import owners, visit_layers
from mgk_core.testing.history import shake
from mgk_core.testing.zoo import make
from mgk_lora.attach import attach
from mgk_lora.spec import LoraSpec


class Simple:
    """A bundle around any model: squared outputs, summed."""

    def __init__(self, model, mask=None):
        self.model, self.mask = model, mask

    def loss(self, batch):
        output = self.model(batch)
        return output.square().sum(), torch.tensor(float(output.shape[0]))

    def valid(self, batch):
        return self.mask


def see(model, batch, weights, *, mask=None, gradients=True):
    seen = {}
    visit_layers(
        Simple(model, mask),
        weights,
        [batch],
        lambda n, x, g: seen.__setitem__(n, (x, g)),
        gradients=gradients,
    )
    return seen


@pytest.mark.parametrize("kind", ["linear", "transposed", "conv1d", "conv2d", "conv3d"])
def test_inputs_and_gradients_make_the_weights_own_gradient(kind):
    """dL/dW = Gᵀ X over positions, whatever the kind: (out, in), kernels flattened."""
    case = make(kind, dtype=torch.float64, layers=3)
    x = case.inputs(1)
    inputs, gradient = see(case.model, x, ["0.weight"])["0.weight"]
    weight = case.model[0].weight.requires_grad_()
    (expected,) = torch.autograd.grad(case.model(x).square().sum(), [weight])
    expected = expected.t() if kind == "transposed" else expected.flatten(1)
    torch.testing.assert_close(gradient.t() @ inputs, expected, rtol=1e-10, atol=1e-10)


def test_embeddings_show_their_ids():
    """Ids come as (positions, 1), the gradient as (positions, width)."""
    case = make("embedding", layers=3)
    ids = case.inputs(1)
    inputs, gradient = see(case.model, ids, ["0.weight"])["0.weight"]
    assert torch.equal(inputs, ids.reshape(-1, 1))
    assert gradient.shape == (ids.numel(), 8)


def test_an_output_changed_in_place_afterwards_does_not_change_its_gradient():
    """ReLU(inplace=True) behind a layer: the gradient is that of the layer's own output."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 4)]
    x = torch.randn(9, 5)
    outside = nn.Sequential(
        layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]
    ).requires_grad_(False)
    inside = nn.Sequential(
        layers[0], nn.ReLU(inplace=True), layers[1], nn.ReLU(inplace=True), layers[2]
    )
    names = ["0.weight", "2.weight", "4.weight"]
    expected, found = see(outside, x, names), see(inside, x, names)
    for name in names:
        assert torch.equal(found[name][1], expected[name][1])


def test_padding_is_left_out():
    """Only the positions of the mask are shown."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4)).requires_grad_(False)
    x = torch.randn(2, 3, 5)
    mask = torch.tensor([True, True, False, True, False, False])
    inputs, gradient = see(model, x, ["0.weight"], mask=mask)["0.weight"]
    assert torch.equal(inputs, x.reshape(-1, 5)[mask])
    assert gradient.shape == (3, 4)


def test_without_gradients_none_are_computed():
    """gradients=False: the second argument is None."""
    case = make("linear", layers=3)
    assert (
        see(case.model, case.inputs(1), ["0.weight"], gradients=False)["0.weight"][1]
        is None
    )


def test_the_bare_base_is_shown():
    """An attached adapter is off while statistics are taken, and training mode comes back."""
    case = make("linear", layers=3)
    x = case.inputs(1)
    plain = see(case.model, x, ["2.weight"])["2.weight"]
    adapter = attach(case.model, LoraSpec(type="lora", rank=2), "a")
    state_of(case.model).adapters.append(adapter)
    shake(adapter)
    case.model.train()
    found = see(case.model, x, ["2.weight"])["2.weight"]
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
    assert case.model.training


def test_what_has_no_rows_of_its_own_is_left_out():
    """Biases, attention's inner weights, experts and grouped convolutions are not shown."""
    case = make("mixed")
    names = [n for n, _ in case.model.named_parameters()]
    assert set(owners(case.model, names)) == {"0.weight", "4.weight", "7.weight"}
