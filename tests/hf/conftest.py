"""Small models of several families, and texts to show them."""

import json

import pytest
import torch

from mgk_hf.bundle import HfBundle
from mgk_hf.network import take_apart
from mgk_hf.tiny import tiny_config, tiny_model, tiny_tokenizer

TEXTS = (
    "당뇨병은 혈당이 높은 상태가 오래 계속되는 대사 질환이다.",
    "고혈압은 혈압이 지속적으로 높은 상태를 말한다.",
    "The heart pumps blood through the body.",
    "폐렴은 폐에 생긴 염증으로, 기침과 열이 난다.",
    "간은 해독을 맡는다.",
)
VOCABULARY = 320
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer small enough that short texts have many tokens."""
    return tiny_tokenizer(TEXTS, VOCABULARY)


def family(name, seed=0):
    """Build a small model of a family with weights large enough that differences show."""
    import transformers as t

    makers = {
        "gemma3": lambda: tiny_model(VOCABULARY, seed, sliding_window=9),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
        "qwen2": lambda: t.Qwen2ForCausalLM(
            t.Qwen2Config(
                **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
            )
        ),
        "mistral": lambda: t.MistralForCausalLM(
            t.MistralConfig(**SIZES, sliding_window=9)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4)
        ),
        "granite": lambda: t.GraniteForCausalLM(
            t.GraniteConfig(**SIZES, logits_scaling=8.0)
        ),
        "gemma2": lambda: t.Gemma2ForCausalLM(
            t.Gemma2Config(**SIZES, head_dim=16, sliding_window=9)
        ),
        "gemma3-multimodal": lambda: t.Gemma3ForConditionalGeneration(with_vision()),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = makers[name]().eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
            elif not parameter.any():
                parameter.normal_(std=0.1)
    return model


def with_vision(vocab_size=VOCABULARY, **changes):
    """Return a Gemma 3 with a vision tower, as MedGemma 4B has one; changes: of the text's keys."""
    from transformers import Gemma3Config

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    text = tiny_config(vocab_size, **changes).to_dict()
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)


@pytest.fixture(scope="session")
def multimodal_config():
    """Return the maker of configurations with a vision tower."""
    return with_vision


@pytest.fixture(scope="session")
def make_model():
    """Return the maker of bare models by family."""
    return family


@pytest.fixture
def make_bundle(tokenizer):
    """Return a maker of bundles by family."""

    def make(name="gemma3", seed=0):
        return HfBundle(take_apart(family(name, seed)), tokenizer, torch.device("cpu"))

    return make


@pytest.fixture
def sequences(tokenizer):
    """Token sequences of different lengths."""
    return [tuple(tokenizer(text).input_ids) for text in TEXTS]


@pytest.fixture
def saved(tmp_path, tokenizer, make_model):
    """Return a maker of model directories."""

    def save(name="llama", dtype=torch.float32):
        directory = tmp_path / name
        make_model(name).to(dtype).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return str(directory)

    return save


LESSONS = """
name = "one"
[base]
type = "hf"
[run]
threads = 1
[defaults]
optimizer = {type = "adamw", lr = 0.003}
train = {steps = 3, batch_size = 2}
[defaults.adapter]
type = "lora"
rank = 2
alpha = 6
[phases.one.data]
type = "text"
length = 24
"""


@pytest.fixture
def run_on(tmp_path):
    """Return ``run_on(base, **overrides)``: a run of one short phase on a directory; its path."""
    from mgk_core.run.runner import run_pipeline

    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    (tmp_path / "lessons.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "one.toml").write_text(LESSONS, encoding="utf-8")

    def run(base, out="run", **overrides):
        given = {
            "base.id": str(base),
            "phases.one.data.train": str(tmp_path / "lessons.jsonl"),
            "phases.one.data.test": str(tmp_path / "lessons.jsonl"),
            **overrides,
        }
        run_pipeline(
            None, out=tmp_path / out, config=tmp_path / "one.toml", overrides=given
        )
        return tmp_path / out

    return run
