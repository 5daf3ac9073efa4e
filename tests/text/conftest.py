"""A tiny Gemma 3 with a tokenizer made from the shipped text, and files to read."""

import json

import pytest
import torch

from mgk_hf.conversation import HfConversation
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_text.encode import Encoder

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="session")
def bundle():
    """The tiny base of mgk_hf: what the data plugin asks of a base, answered by a real one."""
    return build(HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu"))


@pytest.fixture(scope="session")
def chat_tokenizer():
    """The same tokenizer with Gemma's turn tokens and chat template."""
    tokenizer = build(HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu")).tokenizer
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    )
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def encoders(bundle, chat_tokenizer):
    """Encoders by style: ``plain`` and ``chat``."""
    return {
        "plain": Encoder(bundle.conversation.styled("auto")),
        "chat": Encoder(HfConversation(chat_tokenizer).styled("auto")),
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep each test's token files apart from the user's and from other tests'."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mgk_text.cache._memory", {})


@pytest.fixture
def write(tmp_path):
    """Return ``write(name, content)``: a file with a string, bytes, or rows as JSON lines."""

    def put(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = (
                content
                if isinstance(content, str)
                else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content)
            )
            path.write_text(text, encoding="utf-8")
        return str(path)

    return put
