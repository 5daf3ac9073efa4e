"""Whole modules: every weight of them trained, and merged to the bit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError
from mgk_hf.tiny import tiny_model

IDS = torch.tensor([[2, 3, 17, 5, 41, 40]])


def loss(model):
    """Return the next-token loss on one line."""
    return F.cross_entropy(model(IDS).logits[0, :-1], IDS[0, 1:])


def test_a_trained_model_is_the_one_that_plain_fine_tuning_makes():
    """Three steps of SGD through the adapter are those on the weights themselves, and merging keeps the logits' bits."""
    plain, model = tiny_model(96), tiny_model(96)
    plain.requires_grad_(True)
    adapter = mgk.attach(model, "full", targets=["*"])
    runs = [(plain, list(plain.parameters())), (model, adapter.parameters())]
    for network, parameters in runs:
        optimizer = torch.optim.SGD(parameters, lr=2**-6)
        for _ in range(3):
            optimizer.zero_grad()
            loss(network).backward()
            optimizer.step()
    live = model(IDS).logits.detach()
    mgk.merge(model, adapter)
    assert torch.equal(model(IDS).logits, live)
    for name, tensor in base_state_dict(model).items():
        torch.testing.assert_close(
            tensor, base_state_dict(plain)[name], rtol=1e-5, atol=1e-6
        )


def test_large_changes_merge_to_the_bit():
    """Where a delta is far larger than its weight, the merged weight is still the one that was trained."""
    model = nn.Sequential(nn.Linear(13, 7))
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-9, 3, 13))
    adapter = mgk.attach(model, "full", targets=["0"])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 3)
    expected = {n: model.get_parameter(n) + adapter.delta(n) for n in adapter.targets()}
    mgk.merge(model, adapter)
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight)


def test_patterns_mean_modules_with_all_that_is_inside_them():
    """A layer's name means its norms and biases too; exclude takes parts of it out again."""
    model = tiny_model(96)
    adapter = mgk.attach(model, "full", targets=["layers.0"], exclude=["*mlp*"])
    names = set(adapter.targets())
    inside = {
        n for n, _ in model.named_parameters() if ".layers.0." in n and "mgk" not in n
    }
    assert names == {n for n in inside if "mlp" not in n}
    assert any("norm" in n for n in names)


def test_a_tie_is_trained_as_one_where_both_ends_are_named():
    """One end alone is refused, with a way out."""
    model = tiny_model(96)
    with pytest.raises(InputError, match="tied"):
        mgk.attach(model, "full", targets=["embed_tokens"])
    adapter = mgk.attach(model, "full", targets=["embed_tokens", "lm_head"])
    assert list(adapter.targets()) == ["model.embed_tokens.weight"]
    assert adapter.targets()["model.embed_tokens.weight"].aliases == ("lm_head.weight",)


def test_adapters_on_the_same_weight_merge_in_any_order():
    """`full` and LoRA on one weight add up; merging the later one first gives the same sum."""
    model = nn.Sequential(nn.Linear(13, 7), nn.GELU(), nn.Linear(7, 5)).double()
    one = mgk.attach(model, "full", name="one", targets=["0"])
    two = mgk.attach(model, "lora", name="two", targets=["0"], rank=2, alpha=3)
    with torch.no_grad():
        for parameter in (*one.parameters(), *two.parameters()):
            parameter.copy_(torch.randn(parameter.shape))
    x = torch.randn(4, 13, dtype=torch.float64)
    live, other = model(x).detach(), copy.deepcopy(model)
    mgk.merge(model, two)
    mgk.merge(model, one)
    torch.testing.assert_close(model(x), live, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other(x), live, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4)), {"targets": []}, "targets is empty"),
        (lambda: nn.Sequential(nn.Linear(3, 4)), {"targets": ["q_proj"]}, "q_proj"),
        (lambda: nn.Sequential(nn.LSTM(3, 4)), {"targets": ["0"]}, "LSTM"),
        (
            lambda: nn.Sequential(nn.Embedding(5, 3, max_norm=1.0)),
            {"targets": ["0"]},
            "max_norm",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(make, options, words):
    """The error names what it is about."""
    with pytest.raises(InputError, match=words):
        mgk.attach(make(), "full", **options)
