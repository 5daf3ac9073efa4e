"""The live model: what an attached adapter does to the output, and that it leaves no trace."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mgk_core.contract.adapter import base_state_dict
from mgk_core.model.inject import is_adapted
from mgk_core.testing.history import same_bits, shake, snapshot, train
from mgk_core.testing.zoo import KINDS, make

VARIANTS = [
    {}, {"rslora": True}, {"init": "kaiming"}, {"init": "orthogonal"}, {"init": "pissa"}, {"type": "dora"},
    {"type": "dora", "init": "pissa"},
]  # fmt: skip


def merged_model(case, adapter):
    """Return a copy of the bare model with every weight replaced by `merged_weight`, in float64."""
    new = {
        n: adapter.merged_weight(n, t.parameter.detach().double()).to(t.parameter.dtype)
        for n, t in adapter.targets().items()
    }
    with adapter.disabled():
        bare = make(
            case.kind,
            layers=3 if len(case.model) > 3 else 1,
            dtype=next(case.model.parameters()).dtype,
        ).model
    bare.load_state_dict({**base_state_dict(case.model), **new})
    return bare


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_live_output_is_that_of_the_merged_weights(kind, options, put_on):
    """In float64, output with the adapter = output with merged_weight in its place, to rounding."""
    case = make(kind, dtype=torch.float64, layers=3)
    adapter = put_on(case.model, **options)
    train(case, adapter)
    x = case.inputs(5)
    live, merged = case.model(x), merged_model(case, adapter)(x)
    # eps · (longest inner dimension 36) · (layers 5), and 4 to spare
    assert (live - merged).norm() <= 2.2e-16 * 36 * 5 * 4 * live.norm()
    with adapter.disabled():
        assert (case.model(x) - live).norm() > 1e-3 * live.norm(), (
            "the adapter has to do something"
        )


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("attention", "mixed")])
@pytest.mark.parametrize(
    "options", [{}, {"rslora": True, "alpha": 7.0}, {"type": "dora"}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attaching_changes_no_bit_of_the_output(kind, options, dtype, put_on):
    """B = 0 (and DoRA's factor 1): an exact identity, as the adapter promises."""
    case = make(kind, dtype=dtype, layers=3)
    x = case.inputs(1)
    before = case.model(x)
    adapter = put_on(case.model, **options)
    assert adapter.identity == "exact"
    assert torch.equal(case.model(x), before)


@pytest.mark.parametrize(
    "options", [{"init": "pissa"}, {"type": "dora", "init": "pissa"}], ids=str
)
def test_pissa_begins_where_the_base_is(options, put_on):
    """BA − B₀A₀ is zero at the start, though neither product is."""
    case = make("mixed", layers=3)
    x = case.inputs(1)
    before = case.model(x)
    adapter = put_on(case.model, **options)
    assert adapter.identity == "close"
    torch.testing.assert_close(case.model(x), before, rtol=1e-5, atol=1e-5)
    assert all(p.detach().abs().max() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_leaves_no_trace(kind, put_on):
    """Names, order, bits, classes and Parameter objects are those of before."""
    case = make(kind, layers=3)
    before, keys = snapshot(case), list(case.model.state_dict())
    objects = [id(p) for p in case.model.parameters()]
    adapter = put_on(case.model, "train")  # a name that is a method of nn.Module too
    train(case, adapter)
    case.model(case.inputs(3))
    adapter.detach()
    assert not same_bits(before, case)
    assert list(case.model.state_dict()) == keys
    assert [id(p) for p in case.model.parameters()] == objects
    assert not any(is_adapted(m) for m in case.model.modules())


def test_disabled_is_the_base_and_nests(put_on):
    """Inside ``disabled()`` the output is the base's, bit for bit, also when the blocks nest."""
    case = make("linear", layers=3)
    x = case.inputs(1)
    base = case.model(x)
    adapter = put_on(case.model)
    shake(adapter)
    live = case.model(x)
    with adapter.disabled():
        with adapter.disabled():
            assert torch.equal(case.model(x), base)
        assert torch.equal(case.model(x), base)
    assert torch.equal(case.model(x), live)


def test_several_adapters_are_all_active(put_on):
    """Two additive adapters add up, each with its own rank and scale."""
    case = make("linear", dtype=torch.float64)
    x = case.inputs(1)
    base = case.model(x)
    first, second = (
        put_on(case.model, "a.1", rank=2),
        put_on(case.model, "b", rank=4, alpha=3.0, seed=1),
    )
    shake(first, seed=1)
    shake(second, seed=2)
    both = case.model(x)
    with second.disabled():
        one = case.model(x)
    with first.disabled():
        other = case.model(x)
    torch.testing.assert_close(
        both - base, (one - base) + (other - base), rtol=1e-12, atol=1e-12
    )


def test_dora_on_top_of_another_adapter_sees_the_weight_as_that_one_leaves_it(put_on):
    """Merging in the order of attaching gives the live output: DoRA's norm is taken of W + ΔW₁."""
    case = make("transposed", dtype=torch.float64)
    x = case.inputs(1)
    first = put_on(case.model, "first")
    shake(first, seed=1)
    before = case.model(x)
    second = put_on(case.model, "second", type="dora")
    assert torch.equal(case.model(x), before)
    shake(second, seed=2)
    live = case.model(x)
    weight = first.merged_weight("0.weight", case.model[0].weight.double())
    weight = second.merged_weight("0.weight", weight)
    expected = x @ weight + case.model[0].bias
    torch.testing.assert_close(live, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_copy_of_an_adapted_model_is_a_whole_model(way, put_on):
    """deepcopy and pickle give a model with the same output, whose adapter is its own."""
    case = make("mixed", layers=3)
    adapter = put_on(case.model)
    shake(adapter)
    x = case.inputs(1)
    live = case.model(x)
    twin = way(case.model)
    assert torch.equal(twin(x), live)
    twin_adapter = twin.mgk_state.adapters[0]
    twin_adapter.detach()
    assert torch.equal(case.model(x), live)
    with adapter.disabled():
        torch.testing.assert_close(twin(x), case.model(x))


def test_dropout_acts_while_training_and_only_then(put_on):
    """With dropout the training output is random; in evaluation mode it is the plain one."""
    case = make("linear", layers=3)
    adapter = put_on(case.model, dropout=0.5)
    shake(adapter)
    x = case.inputs(1)
    case.model.train()
    assert not torch.equal(case.model(x), case.model(x))
    case.model.eval()
    plain = case.model(x)
    assert torch.equal(case.model(x), plain)
    adapter.detach()
    again = put_on(case.model, dropout=0.0)
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(case.model(x), plain)


def test_a_bf16_base_trains_an_fp32_adapter(put_on):
    """The low-rank path is computed in fp32 and added back; gradients are fp32 and not zero."""
    case = make("linear", dtype=torch.bfloat16, layers=3)
    adapter = put_on(case.model)
    shake(adapter)
    output = case.model(case.inputs(1))
    assert output.dtype == torch.bfloat16
    gradients = torch.autograd.grad(output.float().square().sum(), adapter.parameters())
    assert all(g.dtype == torch.float32 and g.abs().max() > 0 for g in gradients)


def test_autocast_chooses_the_dtype(put_on):
    """Under autocast the low-rank products run in the dtype of autocast, without casts back and forth."""
    case = make("linear", layers=3)
    shake(put_on(case.model))
    x = case.inputs(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = case.model(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(
        output.float(), case.model(x), rtol=0.05, atol=0.05
    )  # bf16 has 8 bits


def test_torchs_fused_encoder_layer_does_not_pass_the_adapter_by(put_on):
    """nn.TransformerEncoderLayer reads its children's weights directly in evaluation mode, unless told not to."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0).eval()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        base = layer(x)
    adapter = put_on(layer, targets=("linear1",))
    shake(adapter)
    with torch.no_grad():
        live = layer(x)
        assert (live - base).abs().max() > 1e-3
        layer.linear1.weight.copy_(
            adapter.merged_weight("linear1.weight", layer.linear1.weight)
        )
        with adapter.disabled():
            torch.testing.assert_close(layer(x), live, rtol=1e-5, atol=1e-5)


class Doubling(nn.Linear):
    """A subclass that does something else with its weight."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * 2, self.bias)


def test_a_subclass_with_a_forward_of_its_own_is_adapted_on_its_weight(put_on):
    """What such a module computes is unknown, so the delta goes on the weight itself: live equals merged."""
    model = nn.Sequential(Doubling(6, 4)).double()
    adapter = put_on(model)
    shake(adapter)
    x = torch.randn(3, 6, dtype=torch.float64)
    live = model(x)
    with torch.no_grad():
        model[0].weight.copy_(adapter.merged_weight("0.weight", model[0].weight))
    with adapter.disabled():
        torch.testing.assert_close(model(x), live, rtol=1e-12, atol=1e-12)


class GainWordEmbedding(nn.Embedding):
    """As transformers' ScaledWordEmbedding classes are: the embedding times ``embed_scale``."""

    embed_scale = torch.tensor(3.5)

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class TinyScaledWordEmbedding(GainWordEmbedding):
    """Known by the end of its name."""


@pytest.mark.parametrize("cls", [GainWordEmbedding, TinyScaledWordEmbedding])
@pytest.mark.parametrize("options", [{}, {"type": "dora"}, {"init": "pissa"}], ids=str)
def test_a_scaled_embedding_scales_its_delta_too(cls, options, put_on):
    """Gemma multiplies embeddings by √width: the delta has to be multiplied alike."""
    model = nn.Sequential(cls(11, 6)).double()
    adapter = put_on(model, **options)
    shake(adapter)
    ids = torch.tensor([[0, 3, 10]])
    live = model(ids)
    with torch.no_grad():
        model[0].weight.copy_(adapter.merged_weight("0.weight", model[0].weight))
    with adapter.disabled():
        torch.testing.assert_close(model(ids), live, rtol=1e-12, atol=1e-12)


def test_an_input_given_by_keyword_is_seen(put_on):
    """``module(input=x)`` works as ``module(x)`` does."""
    case = make("linear")
    shake(put_on(case.model))
    x = case.inputs(1)
    assert torch.equal(case.model[0](input=x), case.model[0](x))
