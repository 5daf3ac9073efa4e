"""Merging what was trained on packed weights: plain ones take their place, exactly, or honestly not."""

import re

import pytest
import torch

import mgk
from mgk_core.contract.adapter import base_state_dict, state_of
from mgk_core.contract.bundle import Tokens
from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import Proposal
from mgk_core.host.hooks import installed_hooks
from mgk_core.model.digest import base_digest
from mgk_core.run.verify_merge import outputs_on, relative_error, verify_merged
from mgk_hf.loading import build
from mgk_hf.quantized import dequantize, is_packed, is_quantized
from mgk_hf.specs import HfSpec

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["nf4", "nf4-double", "int8"])


@pytest.fixture(params=["float32", "bfloat16"])
def around(request):
    """Return the dtype of all that is not packed: on a GPU it is the base's own, mostly bfloat16."""
    return request.param


@pytest.fixture
def opened(saved, around):
    """Return ``opened(kind)``: a packed base with an adapter that has learnt something, and a batch."""

    def make(kind):
        bundle = build(
            HfSpec(
                type="hf",
                id=str(saved("llama")),
                dtype=around,
                quantize=kind.removesuffix("-double"),
                double_quant=kind.endswith("-double"),
            ),
            CPU,
        )
        adapter = mgk.attach(
            bundle.model, "lora", rank=3, alpha=5.0, targets=["all-linear"]
        )
        torch.manual_seed(1)
        for parameter in adapter.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        ids = tuple(range(5, 25))
        return bundle, adapter, bundle.pack([Tokens(ids, ids)])

    return make


@KINDS
def test_dequantized_adds_the_delta_to_what_the_packed_weight_stands_for(
    opened, kind, around
):
    """Every packed module becomes plain; W' = Q(W) + ΔW, and the modules that no adapter is on keep Q(W).

    What the dtype of the model around it cannot hold is W's residual.
    """
    bundle, adapter, _ = opened(kind)
    before = {
        f"{n}.weight": dequantize(m)
        for n, m in bundle.model.named_modules()
        if is_packed(m)
    }
    expected = {
        n: adapter.merged_weight(n, w) if n in adapter.targets() else w
        for n, w in before.items()
    }
    report = mgk.merge(bundle.model, adapter, rule="dequantized")
    assert report.rule == "dequantized"
    assert not is_quantized(bundle.model)
    assert {base_state_dict(bundle.model)[name].dtype for name in expected} == {
        getattr(torch, around)
    }
    for name, weight in expected.items():
        torch.testing.assert_close(whole(bundle)[name], weight, rtol=1e-6, atol=1e-7)


def test_merged_is_what_was_live_on_nf4(opened, around):
    """A 4-bit product is one of the dequantized weight: merged against live holds the transition's own bound."""
    bundle, adapter, batch = opened("nf4")
    live = outputs_on(bundle, [batch])
    report = bundle_merge(bundle, adapter, "dequantized")
    assert report.exact
    with adapter.disabled():
        found = verify_merged(bundle, adapter, [batch], live, seed=0)
    assert found.ok
    assert 0 < found.error < (1e-5 if around == "float32" else 0.02)
    with (
        adapter.disabled(),
        torch.no_grad(),
    ):  # and the bound can fail: another weight is out of it
        next(iter(adapter.targets().values())).parameter.mul_(
            1.01 if around == "float32" else 2
        )
        assert not verify_merged(bundle, adapter, [batch], live, seed=0).ok


def whole(bundle):
    """Return every weight by its name, fp32, its residual added."""
    residuals = state_of(bundle.model).residuals
    return {
        n: w.float() + residuals.get(n, torch.zeros(()))
        for n, w in base_state_dict(bundle.model).items()
    }


def bundle_merge(bundle, adapter, rule):
    """Merge as a transition does: the adapter stays on."""
    hooks = installed_hooks()
    return hooks.merge(
        bundle.model, adapter, Proposal(), hooks.spec("merge", {"type": rule})
    )


def test_int8_says_that_it_was_not_held_against_live(opened):
    """The int8 product rounds activations, which no weight does: never called exact."""
    bundle, adapter, _ = opened("int8")
    report = mgk.merge(bundle.model, adapter, rule="dequantized")
    assert not report.exact
    assert any("not exact" in w for w in report.warnings)


@pytest.mark.parametrize(
    ("kind", "share"), [("int8", 1.0), ("nf4", 0.05)]
)  # int8 rounds activations too
def test_dequantized_is_nearer_to_live_than_original(opened, kind, share):
    """What the adapter was trained beside are the numbers that the packed weights stand for."""
    bundle, adapter, batch = opened(kind)
    (live,) = outputs_on(bundle, [batch])
    off = {}
    for rule in ("dequantized", "original"):
        report = bundle_merge(bundle, adapter, rule)
        with adapter.disabled():
            (merged,) = outputs_on(bundle, [batch])
        report.undo.restore()
        off[rule] = float((live - merged).norm())
    assert 0 < off["dequantized"] < share * off["original"]


@KINDS
def test_original_merges_into_what_was_quantized_and_says_how_far_off_that_is(
    opened, saved, kind
):
    """W' = W + ΔW with the weights of the source; the distance is told, exact never."""
    bundle, adapter, _ = opened(kind)
    plain = base_state_dict(build(HfSpec(type="hf", id=str(saved("llama"))), CPU).model)
    expected = {
        n: adapter.merged_weight(n, plain[n].float()) for n in adapter.targets()
    }
    report = mgk.merge(bundle.model, adapter, rule="original")
    assert not report.exact
    (told,) = (w for w in report.warnings if "‖W − Q(W)‖" in w)
    mean, largest = (
        float(found) for found in re.findall(r"(?:is|at most) ([\d.e-]+)", told)
    )
    assert 0 < mean <= largest < 0.3
    for name, weight in expected.items():
        torch.testing.assert_close(whole(bundle)[name], weight, rtol=1e-6, atol=1e-7)


@KINDS
@pytest.mark.parametrize("rule", ["dequantized", "original"])
def test_rolling_back_brings_the_packed_base_back(opened, kind, rule):
    """The same bits under the same names, and the same outputs, with and without the adapter."""
    bundle, adapter, batch = opened(kind)
    live, digest = outputs_on(bundle, [batch]), base_digest(bundle.model)
    report = bundle_merge(bundle, adapter, rule)
    assert base_digest(bundle.model) != digest
    report.undo.restore()
    assert base_digest(bundle.model) == digest
    assert is_quantized(bundle.model)
    assert relative_error(outputs_on(bundle, [batch]), live) == 0


@KINDS
def test_a_refused_merge_leaves_the_packed_base_as_it_was(opened, kind):
    """NaN in the last layer: an error, and not one packed module was exchanged."""
    bundle, adapter, _ = opened(kind)
    digest = base_digest(bundle.model)
    adapter.parameters()[-1].data[0, 0] = torch.nan
    with pytest.raises(MergeError, match="nan|NaN|finite"):
        mgk.merge(bundle.model, adapter, rule="dequantized")
    assert base_digest(bundle.model) == digest
    assert is_quantized(bundle.model)


def test_what_comes_out_is_a_plain_model_that_loads(opened, around, tmp_path):
    """Saved without a quantizer's marks; loaded again it scores the same."""
    bundle, adapter, batch = opened("nf4")
    mgk.merge(bundle.model, adapter, rule="dequantized")
    expected = outputs_on(bundle, [batch])
    bundle.save(tmp_path / "out")
    again = build(HfSpec(type="hf", id=str(tmp_path / "out"), dtype=around), CPU)
    assert not is_quantized(again.model)
    assert relative_error(outputs_on(again, [batch]), expected) < 1e-6
