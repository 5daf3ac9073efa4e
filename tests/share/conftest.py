"""What tests of sharing use: small model directories."""

import json

import pytest
from small_models import TEXTS, build, byte_level

pytest.importorskip("transformers")


@pytest.fixture
def directory(tmp_path):
    """Return a maker of model directories: (family, tokenizer) → path."""

    def make(family, tokenizer):
        model = build(family, len(tokenizer) + 3)  # rows that no token has
        model.generation_config.eos_token_id = [
            tokenizer.eos_token_id,
            tokenizer.convert_tokens_to_ids("<|im_end|>"),
        ][: 2 if tokenizer.chat_template else 1]
        path = tmp_path / family
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make


ONE_PHASE = """
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


@pytest.fixture(scope="session")
def language_run(tmp_path_factory):
    """Return a finished run of one short phase on a small chat model; tests read it only."""
    from mgk_core.run.runner import run_pipeline

    home = tmp_path_factory.mktemp("language")
    tokenizer = byte_level()
    build("gemma3", len(tokenizer)).save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS * 2]
    (home / "lessons.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (home / "one.toml").write_text(ONE_PHASE, encoding="utf-8")
    lessons = str(home / "lessons.jsonl")
    run_pipeline(
        None, out=home / "run", config=home / "one.toml",
        overrides={"base.id": str(home / "base"), "phases.one.data.train": lessons, "phases.one.data.test": lessons},
    )  # fmt: skip
    return home / "run"
