"""Four kinds of base from run to adapter: `mgk ask`, transformers and PEFT give the same answers."""

from __future__ import annotations

import datetime as dt
import json

import pytest
import torch
from attrs import frozen
from chat_families import BY_NAME, tokenizer_of
from clocks import Tomorrow
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import chat_template_utils

from mgk_core.run.runner import run_pipeline
from mgk_core.tools.chat import ask
from mgk_core.tools.export import export_adapter
from mgk_hf.tiny import tiny_config

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
PAIRS = {"hypertension": "고혈압", "asthma": "천식", "gout": "통풍", "headache": "두통",
         "diabetes": "당뇨병", "pneumonia": "폐렴"}  # fmt: skip
QUESTIONS = {f"영어: {english}\n한국어:": korean for english, korean in PAIRS.items()}
TOKENS = 16
RUN = """
name = "pairs"
base = {{ type = "hf", id = "{base}" }}
[run]
threads = 1
[phases.words]
adapter = {{ type = "lora", rank = 8, alpha = 12, targets = ["all-linear"] }}
optimizer = {{ type = "adamw", lr = 1e-2 }}
train = {{ steps = 80, batch_size = 6 }}
data = {{ type = "dictionary", style = "chat", train = "{pairs}", test = "{pairs}", generate = 1 }}
"""
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
         "max_position_embeddings": 512, "tie_word_embeddings": True}  # fmt: skip


@frozen
class Kind:
    """A base to test: the class that transformers must load, the markup, and what a prompt must hold."""

    model: str
    markup: str
    shown: str


KINDS = (
    Kind("Gemma3ForCausalLM", "gemma-3", "<start_of_turn>model\n"),
    Kind("Gemma3ForConditionalGeneration", "gemma-3", "<start_of_turn>model\n"),
    Kind("Qwen3ForCausalLM", "qwen-3", "<think>\n\n</think>\n\n"),
    Kind("LlamaForCausalLM", "llama-3.2", "Today Date: {date:%d %b %Y}\n"),
)


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Keep the user's token cache out."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write_base(multimodal_config):
    """Return ``write_base(kind, folder)``, which saves a random model, a tokenizer and its ends."""
    import transformers

    def config(kind, tokenizer):
        given = {
            "vocab_size": len(tokenizer),
            "initializer_range": 0.1,
            "pad_token_id": 0,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        }
        if kind.model == "Gemma3ForConditionalGeneration":
            return multimodal_config(**given)
        if kind.model == "Gemma3ForCausalLM":
            return tiny_config(given.pop("vocab_size"), **given)
        name = kind.model.replace("ForCausalLM", "Config")
        return getattr(transformers, name)(**SIZES, **given)

    def write(kind, folder, ends=None):
        family = BY_NAME[kind.markup]
        tokenizer = tokenizer_of(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, kind.model)(config(kind, tokenizer))
        ends = list(ends or family.ends)
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return write


def train(base, tmp_path):
    """Run one phase that learns the pairs by heart; returns the run's directory."""
    rows = [
        json.dumps({"ko": k, "en": e}, ensure_ascii=False) for e, k in PAIRS.items()
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(rows), encoding="utf-8")
    config = tmp_path / "run.toml"
    config.write_text(RUN.format(base=base, pairs=pairs), encoding="utf-8")
    run_pipeline(None, out=tmp_path / "run", config=config)
    return tmp_path / "run"


def prompt_of(tokenizer, question):
    """Return a question's prompt as the tokenizer's own template writes it."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


def answers(model, tokenizer, **settings):
    """Return what transformers' greedy `generate` answers to each question."""
    found = []
    for question in QUESTIONS:
        asked = prompt_of(tokenizer, question)
        made = model.eval().generate(
            **asked, do_sample=False, max_new_tokens=TOKENS, **settings
        )
        new = made[0, asked["input_ids"].shape[1] :]
        found.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model)
def test_the_same_answers_everywhere(kind, write_base, tmp_path, monkeypatch):
    """Run, then a day later ask, RUN/model, export and PEFT: the same prompts and right answers."""
    write_base(kind, tmp_path / "base")
    run = train(tmp_path / "base", tmp_path)
    today = dt.datetime.now()  # noqa: DTZ005 - as templates print it
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    asked = ask(run, list(QUESTIONS), tokens=TOKENS)
    own = [answer.final for answer in asked]

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    saved = AutoModelForCausalLM.from_pretrained(run / "model")
    assert type(saved).__name__ == kind.model
    prompt = prompt_of(tokenizer, "gout")["input_ids"][0].tolist()
    assert kind.shown.format(date=today) in tokenizer.decode(prompt)
    assert answers(saved, tokenizer) == own

    export_adapter(run, tmp_path / "adapter")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    beside = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert type(adapted.get_base_model()).__name__ == kind.model
    assert prompt_of(beside, "gout")["input_ids"][0].tolist() == prompt
    assert answers(adapted, beside) == own

    right = [one == other for one, other in zip(own, QUESTIONS.values(), strict=True)]
    assert sum(right) >= len(PAIRS) - 1
    assert all(answer.base != answer.final for answer in asked)


def test_an_adapter_carries_the_ends_that_its_base_does_not_name(write_base, tmp_path):
    """Where the base ends at <eos> only, the adapter's generation configuration ends its answers."""
    write_base(KINDS[0], tmp_path / "base", ends=["<eos>"])
    run = train(tmp_path / "base", tmp_path)
    own = [answer.final for answer in ask(run, list(QUESTIONS), tokens=TOKENS)]
    adapter = tmp_path / "adapter"
    export_adapter(run, adapter)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(adapter)
    beside = AutoTokenizer.from_pretrained(adapter)
    ends = GenerationConfig.from_pretrained(adapter)
    assert answers(adapted, beside) != own
    assert answers(adapted, beside, generation_config=ends) == own
