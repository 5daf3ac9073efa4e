"""Loading by id, saving, quantized and multimodal bases, and the errors on the way."""

import json

import pytest
import torch

import mgk
from mgk_core.config.resolve import load_tree
from mgk_core.contract.bundle import Bundle, Choice, LanguageBundle, Tokens
from mgk_core.contract.errors import (
    ConfigError,
    DigestError,
    EnvironmentFault,
    InputError,
)
from mgk_core.model.activation_meter import counted
from mgk_core.model.digest import base_digest
from mgk_core.run.setup import prepare
from mgk_hf import gemma_q4
from mgk_hf.cache import whole_directory
from mgk_hf.failures import explain
from mgk_hf.loading import build
from mgk_hf.packed import packed_in
from mgk_hf.quantized import dequantize
from mgk_hf.specs import HfSpec

CPU = torch.device("cpu")
FAMILIES_SAVED = ("gemma3", "llama", "gpt2", "gemma3-multimodal")
QUANTIZED = {
    "int8": {"quantize": "int8"},
    "nf4": {"quantize": "nf4"},
    "nf4-double": {"quantize": "nf4", "double_quant": True},
}
EXAMPLE = [
    Tokens((2, 50, 60, 70, 80), (-100, -100, 60, 70, 80)),
    Tokens((2, 90, 91), (2, 90, 91)),
]


def spec(id_, **options):
    """A spec as a configuration would make it."""
    return HfSpec(type="hf", id=str(id_), **options)


def test_tiny_gemma_is_deterministic():
    """The same declaration gives the same weights and tokenizer; another seed gives others."""
    first, second, other = (
        build(spec("tiny-gemma"), CPU),
        build(spec("tiny-gemma"), CPU),
        build(spec("tiny-gemma", seed=1), CPU),
    )
    weights = [
        b.model.state_dict()["model.layers.0.mlp.up_proj.weight"]
        for b in (first, second, other)
    ]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert isinstance(first, Bundle)
    assert isinstance(first, LanguageBundle)
    assert not any(p.requires_grad for p in first.model.parameters())
    assert not first.model.training


def test_tiny_tokenizer_gives_back_any_text():
    """Text in any script comes back unchanged, and begins with <bos>."""
    tokenizer = build(spec("tiny-gemma"), CPU).tokenizer
    text = "당뇨병 é 😀\n\tx  y"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", FAMILIES_SAVED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_gives_the_same_function(saved, tmp_path, name, dtype):
    """What is saved loads in transformers and in mgk, and computes the same bits' logits."""
    from transformers import AutoConfig, AutoModelForCausalLM

    bundle = build(spec(saved(name, dtype)), CPU)
    batch = bundle.pack(EXAMPLE)
    expected = bundle.outputs(batch)
    bundle.save(tmp_path / "out")
    again = build(spec(tmp_path / "out"), CPU)
    assert (again.outputs(batch) - expected).abs().max() <= 1e-5 * expected.abs().max()
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.dtype == torch.float32
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    row = other(input_ids=torch.tensor([EXAMPLE[0].ids])).logits[0, 1:4]
    assert (row - expected[:3]).abs().max() <= 1e-4 * expected.abs().max()
    assert not list((tmp_path / "out").glob("*.bin"))
    assert "mgk" not in (tmp_path / "out" / "config.json").read_text()


def test_vocabulary_table_keeps_its_bits(saved):
    """On a CPU masters are fp32 while the table stays bf16: the same function in half the memory."""
    where = saved("gemma3", torch.bfloat16)
    mixed, wide = build(spec(where), CPU), build(spec(where), CPU)
    assert mixed.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert (
        mixed.model.get_output_embeddings().weight
        is mixed.model.get_input_embeddings().weight
    )
    assert mixed.model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    batch = wide.pack(EXAMPLE)
    row = reference(input_ids=torch.tensor([EXAMPLE[0].ids])).logits[0, 1:4]
    assert (mixed.outputs(batch)[:3] - row).abs().max() <= 1e-5 * row.abs().max()


def test_multimodal_adapts_the_language_model_only(saved, tmp_path):
    """Of a multimodal Gemma 3 only the language model is run and offered to adapters."""
    bundle = build(spec(saved("gemma3-multimodal")), CPU)
    assert bundle.adaptable == ("model.language_model", "lm_head")
    total, count = bundle.loss(bundle.pack(EXAMPLE))
    assert total.isfinite()
    assert count == 5
    bundle.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())[
        "architectures"
    ] == ["Gemma3ForConditionalGeneration"]


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_bases(saved, kind):
    """A quantized base scores and back-propagates."""
    pytest.importorskip("bitsandbytes")
    bundle = build(spec(saved("llama"), **QUANTIZED[kind]), CPU)
    batch = bundle.pack(EXAMPLE)
    hidden = bundle.network.decoder.layers[0].input_layernorm.weight
    hidden.requires_grad_(requires_grad=True)
    total, _ = bundle.loss(batch)
    (gradient,) = torch.autograd.grad(total, hidden)
    assert gradient.any()


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_base_keeps_its_bits(saved, kind):
    """Scoring, training and scoring again leave every stored number where it was: a frozen base is one base."""
    pytest.importorskip("bitsandbytes")
    bundle = build(spec(saved("llama"), **QUANTIZED[kind]), CPU)
    before = base_digest(bundle.model)
    batch = bundle.pack(EXAMPLE)
    with torch.no_grad():
        bundle.outputs(batch)
    hidden = bundle.network.decoder.layers[0].input_layernorm.weight.requires_grad_(
        requires_grad=True
    )
    bundle.model.train()
    bundle.loss(batch)[0].backward()
    hidden.requires_grad_(requires_grad=False)
    bundle.model.eval()
    with torch.no_grad():
        bundle.outputs(batch)
    assert base_digest(bundle.model) == before


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_directory_of_packed_weights_is_loaded_as_it_is(saved, tmp_path, kind):
    """Nothing names its quantizer but its own configuration: the same stored numbers, whatever the CPU's policy."""
    pytest.importorskip("bitsandbytes")
    bundle = build(spec(saved("gemma3"), **QUANTIZED[kind]), CPU)
    bundle.save(tmp_path / "packed")
    again = build(spec(tmp_path / "packed", compute="bfloat16"), CPU)
    assert base_digest(again.model) == base_digest(bundle.model)
    batch = bundle.pack(EXAMPLE)
    with torch.no_grad():
        assert torch.equal(again.outputs(batch), bundle.outputs(batch))


def test_double_quantization_packs_the_scales_of_nf4(saved):
    """The scales of the same packed weights take about a quarter of the bytes, and the numbers hardly change."""
    pytest.importorskip("bitsandbytes")
    plain, double = (
        build(spec(saved("llama"), **QUANTIZED[kind]), CPU)
        for kind in ("nf4", "nf4-double")
    )
    for one, other in zip(packed_in(plain.model), packed_in(double.model), strict=True):
        assert torch.equal(one.weight.data, other.weight.data)
        scales, packed = one.weight.quant_state.absmax, other.weight.quant_state
        assert scales.dtype == torch.float32
        assert packed.absmax.dtype == torch.uint8
        assert packed.state2.absmax.numel() == -(-scales.numel() // 256)
        expected = dequantize(one.module)
        error = (dequantize(other.module) - expected).norm() / expected.norm()
        assert 0 < float(error) < 0.02


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_double_quantization_without_nf4_is_refused(quantize):
    """There are no scales of nf4 to quantize: the error names both keys."""
    with pytest.raises(ConfigError, match=r"base.*double_quant.*quantize = 'nf4'"):
        prepare(
            load_tree(
                "korean-medical",
                overrides=[f"base.quantize={quantize}", "base.double_quant=true"],
            )
        )


def test_scores_of_a_saved_model(saved):
    """Scoring works on a loaded base and counts bytes where the item does not."""
    bundle = build(spec(saved("gpt2")), CPU)
    item = Choice((2, 50, 60), ((70,), (80, 81)), 0)
    (scores,) = bundle.score([item])
    assert scores.bytes == tuple(
        len(bundle.tokenizer.decode(list(o)).encode()) for o in item.options
    )


@pytest.mark.parametrize(
    ("id_", "said"),
    [
        ("/no/such/place", "no such directory"),
        ("just-a-name", "shipped: gemma-3-270m-q4"),
        ("./a/b", "no such directory"),
    ],
)
def test_a_wrong_id_is_told(id_, said):
    """A path that is not there and a name that is nothing are told apart from hub ids."""
    with pytest.raises(InputError, match=said):
        build(spec(id_), CPU)


def test_offline_is_told(monkeypatch):
    """Without a network and without a cache the message says what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="not in the local cache"):
        build(spec("nobody/nothing-of-this-name"), CPU)


def test_hub_errors_are_typed():
    """Gated, missing, unknown revision, no safetensors: each has its own message and kind."""
    from huggingface_hub import errors as hub

    def of(kind):
        inner = kind.__new__(kind)
        Exception.__init__(inner, "inner")
        outer = OSError("outer")
        outer.__cause__ = inner
        return outer

    cases = [
        (of(hub.GatedRepoError), EnvironmentFault, "accept its terms"),
        (of(hub.RepositoryNotFoundError), InputError, "no such model"),
        (of(hub.RevisionNotFoundError), InputError, "no revision 'v9'"),
        (
            OSError("o/n does not appear to have a file named model.safetensors"),
            InputError,
            "reads no pickles",
        ),
        (
            ValueError("please pass trust_remote_code=True"),
            InputError,
            "trust_remote_code = true",
        ),
        (ValueError("whatever"), InputError, "whatever"),
    ]
    for error, kind, said in cases:
        made = explain("o/n", "v9", error)
        assert isinstance(made, kind)
        assert said in str(made)


def test_directory_without_config_is_told(tmp_path):
    """A directory that holds no model is no model."""
    with pytest.raises(InputError, match=r"config\.json"):
        build(spec(tmp_path), CPU)


def test_pickled_weights_are_refused(tmp_path, tokenizer, make_model):
    """A directory with pickled weights only is refused, not read."""
    model = make_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="safetensors"):
        build(spec(tmp_path), CPU)


def test_missing_package_says_what_to_install(monkeypatch):
    """Without the package the default base names the extra, and the way without it."""
    monkeypatch.setattr(gemma_q4, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match=r"mgk\[gemma\].*tiny-gemma"):
        build(spec("gemma-3-270m-q4"), CPU)


def test_parts_are_verified(tmp_path):
    """Parts that do not add up to the stated digest are refused."""
    part = tmp_path / "part"
    part.write_bytes(b"not the model")
    with pytest.raises(DigestError):
        gemma_q4.assemble([part], tmp_path / "whole", "0" * 64)


def test_cache_directory_appears_whole_or_not_at_all(tmp_path):
    """A conversion that fails leaves nothing; one that another process finished first is dropped."""
    target = tmp_path / "model"

    def fail():
        with whole_directory(target) as work:
            (work / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_directory(target) as work:
        (work / "a").write_text("first")
    with whole_directory(target) as work:
        (work / "a").write_text("second")
    assert (target / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_notice_goes_with_what_is_saved(saved, tmp_path):
    """A Gemma's notice is given at loading and stands in every directory saved from it."""
    bundle = build(spec(saved("gemma3")), CPU)
    assert "Gemma Terms of Use" in bundle.notice
    bundle.save(tmp_path / "out")
    assert "Gemma Terms of Use" in (tmp_path / "out" / "NOTICE.md").read_text()
    assert build(spec(saved("llama")), CPU).notice == ""


@pytest.mark.parametrize(("compute", "off"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_checkpointing_keeps_less_for_the_same_gradients(saved, recwarn, compute, off):
    """While training, what is kept for the backward pass shrinks; loss and gradients are the same; nothing is warned of."""
    ids = tuple(range(5, 69))
    found = {}
    for on in (False, True):
        bundle = build(
            HfSpec(type="hf", id=saved("gemma3"), checkpointing=on, compute=compute),
            torch.device("cpu"),
        )
        adapter = mgk.attach(
            bundle.model, "lora", rank=2, alpha=4, targets=["all-linear"]
        )
        for number, parameter in enumerate(adapter.parameters()):
            parameter.data.add_(
                torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(number)
                )
                * 0.05
            )
        bundle.model.train()
        with counted(
            {p.untyped_storage().data_ptr() for p in bundle.model.parameters()}
        ) as kept:
            loss, _ = bundle.loss(bundle.pack([Tokens(ids, ids)]))
        loss.backward()
        found[on] = (
            sum(kept.values()),
            loss.detach(),
            [p.grad for p in adapter.parameters()],
        )
    assert found[True][0] < 0.5 * found[False][0]
    torch.testing.assert_close(found[True][1], found[False][1], rtol=off / 10, atol=0)
    for mine, whole in zip(found[True][2], found[False][2], strict=True):
        assert float((mine - whole).norm()) <= off * float(whole.norm())
    assert not [w for w in recwarn if "checkpointing" in str(w.message)]
