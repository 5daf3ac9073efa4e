"""What mgk answers is what transformers answers on the saved model with the saved model's own files."""

from __future__ import annotations

import json

import pytest
import torch
from chat_families import FAMILIES, tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from mgk_hf.chat_template import Settings
from mgk_hf.conversation import HfConversation
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

CPU = torch.device("cpu")
QUESTION = [{"role": "user", "content": "두통은 무엇입니까?"}]
OWN = {
    "do_sample": True,
    "repetition_penalty": 1.8,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
}
"""What a base's generation configuration may hold beside its stop tokens."""


def most_likely(model, prompt, steps):
    """Return the most likely tokens after a prompt, one forward pass each."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def base_of(family, folder):
    """Write a tiny random base of a family; returns (model, tokenizer)."""
    tokenizer = tokenizer_of(family)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def write_generation(folder, ends):
    """Write a generation configuration with several ends and settings for sampling."""
    table = {**OWN, "eos_token_id": ends, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(table), encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_answers_are_those_of_generate_on_the_saved_model(family, tmp_path):
    """Prompt, answer and its end agree; penalties for sampling do not act; every end stops."""
    base, saved = tmp_path / "base", tmp_path / "model"
    model, tokenizer = base_of(family, base)
    ends = tokenizer.convert_tokens_to_ids(list(family.ends)) or [
        tokenizer.eos_token_id
    ]
    thinking = "off" if family.name == "deepseek-r1" else "auto"
    talk = HfConversation(tokenizer, Settings(thinking)).styled("chat")
    prompt = talk.prompts([QUESTION])[0]
    free = most_likely(model, prompt, 12)
    stop = next(t for i, t in enumerate(free) if i and t not in free[:i])
    write_generation(base, [*ends, stop])

    spec = HfSpec(
        type="hf", id=str(base), compute="float32", head="exact", thinking=thinking
    )
    bundle = build(spec, CPU)
    talk = bundle.conversation.styled("chat")
    answer = bundle.generate(talk.prompts([QUESTION]), max_new_tokens=12)[0]
    bundle.save(saved)

    assert answer == free[: free.index(stop)]
    served = AutoModelForCausalLM.from_pretrained(saved).eval()
    words = AutoTokenizer.from_pretrained(saved)
    asked = words.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert asked["input_ids"][0].tolist() == list(prompt)
    made = served.generate(
        **asked, do_sample=False, repetition_penalty=1.0, max_new_tokens=12
    )
    assert made[0, len(prompt) :].tolist() == [*answer, stop]
    listed = json.loads((saved / "generation_config.json").read_text(encoding="utf-8"))
    assert set(listed["eos_token_id"]) == set(talk.stops)
    assert listed["repetition_penalty"] == OWN["repetition_penalty"]


def test_the_bases_generation_configuration_is_put_back(tmp_path):
    """An answer leaves the model's own generation configuration as it was."""
    family = FAMILIES[0]
    base_of(family, tmp_path)
    write_generation(tmp_path, [1])
    bundle = build(HfSpec(type="hf", id=str(tmp_path)), CPU)
    before = bundle.model.generation_config.to_dict()
    bundle.generate([[5, 6]], max_new_tokens=2)
    assert bundle.model.generation_config.to_dict() == before
    assert before["repetition_penalty"] == OWN["repetition_penalty"]
