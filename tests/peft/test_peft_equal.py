"""PEFT's tuners under mgk against PEFT itself: forward, gradients, merged weights, files."""

import copy
import math

import pytest
import torch

import mgk
from mgk_core.contract.adapter import base_state_dict, state_of

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)

X = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
EPS = 2.0**-23


def llama():
    """A Llama of two layers with grouped queries, so that k and v are not square."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            transformers.LlamaForCausalLM(config)
            .requires_grad_(requires_grad=False)
            .eval()
        )


def test_live_gradients_and_merged_are_those_of_peft(kind, mlp, put_on, train, by_peft):
    """The same tensors in PEFT's own wrapper: the same output and gradients bit for bit, and the merged weights."""
    bare, model = mlp().eval(), mlp().eval()
    adapter = put_on(model, kind)
    train(model, adapter, X)
    other = by_peft(bare, adapter)
    live, theirs = model(X), other(X)
    assert torch.equal(live, theirs)
    assert not torch.allclose(live, bare(X), rtol=1e-3)
    wanted = {n: p for n, p in other.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(theirs.square().sum(), list(wanted.values()))
    found = torch.autograd.grad(live.square().sum(), adapter.parameters())
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    before = {n: t.clone() for n, t in base_state_dict(model).items()}
    mgk.merge(model, adapter)
    merged = other.merge_and_unload(safe_merge=True).state_dict()
    assert list(merged) == list(model.state_dict())
    for name, weight in model.state_dict().items():
        # W + (merged − W): the difference and the sum are rounded once each
        slack = EPS * ((merged[name] - before[name]).abs() + merged[name].abs())
        assert bool(((weight - merged[name]).abs() <= slack).all()), name


def test_merged_is_live(kind, mlp, put_on, train):
    """fp32: two layers of at most 20 terms each, in another order of sums."""
    model = mlp().eval()
    adapter = put_on(model, kind)
    train(model, adapter, X)
    live = model(X)
    report = mgk.merge(model, adapter)
    assert (model(X) - live).norm() / live.norm() <= EPS * 20 * 2
    assert report.kept == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["LORA", "OFT", "IA3", "LOHA", "VERA", "HRA"])
def test_a_llama_computes_what_peft_makes_of_it(kind, put_on, train, by_peft):
    """A whole small Llama: live bit-equal to PEFT's, merged logits within rounding of live."""
    bare, model = llama(), llama()
    ids = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(2))
    adapter = put_on(
        model, kind, targets=("*k_proj", "*v_proj", "*up_proj", "*down_proj")
    )
    train(model, adapter, ids)
    live = model(ids).logits
    other = by_peft(bare, adapter)
    assert torch.equal(live, other(ids).logits)
    assert not torch.allclose(live, bare(ids).logits, rtol=1e-3)
    mgk.merge(model, adapter)
    found, theirs = model(ids).logits, other.merge_and_unload()(ids).logits
    assert (found - live).norm() / live.norm() <= 5e-6
    assert (found - theirs).norm() / live.norm() <= 5e-6


def test_files_are_read_by_peft_and_by_mgk(kind, mlp, put_on, train, tmp_path):
    """PeftModel.from_pretrained computes the live output; load gives the same bits over another seed's adapter."""
    import peft

    model = mlp().eval()
    adapter = put_on(model, kind)
    train(model, adapter, X)
    live = model(X)
    adapter.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    assert not hasattr(model, "peft_config")
    other = peft.PeftModel.from_pretrained(mlp(), str(tmp_path)).eval()
    assert torch.allclose(other(X), live, rtol=0, atol=1e-6)

    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    fresh = mlp().eval()
    again = put_on(fresh, kind, seed=5)
    again.load(tmp_path)
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert torch.equal(fresh(X), live)


def test_bf16_bases_keep_their_residual(mlp, put_on, train):
    """A bf16 base merged under mgk: weight and residual together hold the delta that PEFT's tuner makes."""
    model = mlp().to(torch.bfloat16).eval()
    adapter = put_on(model, "LOHA")
    assert all(p.dtype == torch.float32 for p in adapter.parameters())
    train(model, adapter, X.bfloat16())
    before = {
        n: model.get_parameter(n.replace(".", ".base_layer.")).float()
        for n in adapter.targets()
    }
    wanted = {n: adapter.merged_weight(n, w) for n, w in before.items()}
    mgk.merge(model, adapter)
    residuals = state_of(model).residuals
    for name, weight in wanted.items():
        total = model.get_parameter(name).float() + residuals[name]
        assert torch.allclose(total, weight, rtol=4 * EPS, atol=1e-9), name


def test_a_copy_of_the_model_is_a_whole_copy(mlp, put_on, train):
    """A deepcopy has an adapter of its own: merging it leaves the first as it was."""
    model = mlp().eval()
    adapter = put_on(model, "OFT")
    train(model, adapter, X)
    live = model(X)
    twin = copy.deepcopy(model)
    mgk.merge(twin, state_of(twin).adapters[0])
    assert torch.equal(model(X), live)
    assert math.isclose(float((twin(X) - live).norm() / live.norm()), 0, abs_tol=1e-6)


def test_road_merges_into_a_narrow_base_with_a_bias():
    """RoAd turns weight and bias by one rotation: both in the precision of the merge."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 20)).to(torch.bfloat16)
    adapter = mgk.attach(model, "peft:ROAD", targets=["0"], options={"group_size": 4})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = torch.randn(5, 12).to(torch.bfloat16)
    live = model(x).detach().float()
    mgk.merge(model, adapter)
    error = (model(x).detach().float() - live).norm() / live.norm()
    assert error <= 8 * torch.finfo(torch.bfloat16).eps
