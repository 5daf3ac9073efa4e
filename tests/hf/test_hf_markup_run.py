"""A run's markup from start to saved model: recorded, resumed on another day, saved, asked."""

from __future__ import annotations

import datetime as dt
import json

import pytest
import torch
from chat_families import BY_NAME, tokenizer_of
from clocks import Tomorrow
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import chat_template_utils

from mgk_core.contract.errors import InputError
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.run.setup import prepare_run
from mgk_core.tools.chat import ask
from mgk_core.tools.plan import make_plan

ROWS = (
    ("고혈압", "hypertension"),
    ("천식", "asthma"),
    ("통풍", "gout"),
    ("두통", "headache"),
)
PHASE = """
[phases.{name}]
adapter = {{ type = "lora", rank = 2, alpha = 4, targets = ["all-linear"] }}
optimizer = {{ type = "adamw", lr = 1e-3 }}
train = {{ steps = 2, batch_size = 2 }}
[phases.{name}.data]
probe = "{name}"
{data}
"""


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Keep the user's token cache out."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def start(tmp_path):
    """Return ``start(family, *phases, until, base, template)``: a run of two-step phases."""
    terms = tmp_path / "terms.jsonl"
    rows = [json.dumps({"ko": ko, "en": en}, ensure_ascii=False) for ko, en in ROWS]
    terms.write_text("\n".join(rows), encoding="utf-8")
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        '{"text": "두통은 흔하다."}\n{"text": "천식은 숨이 차다."}\n', encoding="utf-8"
    )
    kinds = {
        "dictionary": f'type = "dictionary"\ntrain = "{terms}"\ntest = "{terms}"\ngenerate = 1',
        "text": f'type = "text"\ntrain = "{texts}"\ntest = "{texts}"\nlength = 16',
    }

    def run(
        family, *phases, until=None, base="", template=None, style="auto", plan=False
    ):
        tokenizer = tokenizer_of(BY_NAME[family], template)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        text = f'name = "t"\nbase = {{ type = "hf", id = "{tmp_path}/base"{base} }}\n'
        for i, kind in enumerate(phases):
            data = kinds[kind] + (
                f'\nstyle = "{style}"' if kind == "dictionary" else ""
            )
            text += PHASE.format(name=f"p{i}", data=data)
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        if plan:
            (tmp_path / "planned").mkdir()
            (tmp_path / "planned" / "run.toml").write_text(text, encoding="utf-8")
            return make_plan(prepare_run(tmp_path / "planned"))
        out = tmp_path / "run"
        run_pipeline(None, out=out, config=tmp_path / "run.toml", until=until)
        return out

    return run


def test_a_dated_run_resumes_and_answers_on_another_day(start, monkeypatch):
    """The date of the run's start stays in training, in answers and in the saved template."""
    run = start("llama-3.2", "dictionary", "dictionary", until="p0")
    record = json.loads(
        (run / "base" / "conversation.json").read_text(encoding="utf-8")
    )
    today = dt.date.fromisoformat(record["date"])
    first = ask(run, ["두통은?"], tokens=4)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert ask(run, ["두통은?"], tokens=4) == first
    assert resume_run(run).finished
    saved = AutoTokenizer.from_pretrained(run / "model")
    text = saved.apply_chat_template(
        [{"role": "user", "content": "가"}], tokenize=False
    )
    assert f"Today Date: {today:%d %b %Y}\n" in text
    again = json.loads((run / "base" / "conversation.json").read_text(encoding="utf-8"))
    assert again == record
    (
        run / "base" / "conversation.json"
    ).unlink()  # as a run of an earlier version has it
    assert ask(run, ["두통은?"], tokens=4)


def test_a_run_that_teaches_no_turns_leaves_the_template_alone(start):
    """Plain texts fix nothing: the saved template is the base's own."""
    run = start("llama-3.2", "text")
    saved = AutoTokenizer.from_pretrained(run / "model")
    assert saved.chat_template == BY_NAME["llama-3.2"].template


@pytest.mark.parametrize("family", ["gemma-3", "mistral"])
def test_a_base_without_template_is_saved_with_the_one_it_was_trained_with(
    start, family
):
    """style = chat: model/ has a template and its end; ask and transformers answer alike."""
    run = start(family, "dictionary", template="", style="chat")
    saved = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    question = [{"role": "user", "content": "영어: gout\n한국어:"}]
    ids = saved.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    end = BY_NAME[family].turn_end
    ends = model.generation_config.eos_token_id
    assert saved.convert_tokens_to_ids(end) in (
        [ends] if isinstance(ends, int) else ends
    )
    made = model.generate(**ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
    text = saved.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    [answer] = ask(run, [question[0]["content"]], tokens=6)
    assert answer.final == text.strip()


def test_what_cannot_be_served_as_trained_fails_at_plan_time(start):
    """A prompt that opens a thinking block is refused before anything is trained, with the choices."""
    with pytest.raises(InputError, match=r"Set base\.thinking: 'off'"):
        start("deepseek-r1", "dictionary", plan=True)


def test_a_plan_names_what_the_markup_does(start):
    """The notes say that a date is fixed."""
    plan = start("llama-3.2", "dictionary", plan=True)
    assert any("prints the date" in note for note in plan.phases[0].notes)


def test_thinking_off_is_saved_and_asked(start):
    """base.thinking = off for a base without the switch: the saved template closes the block."""
    run = start("deepseek-r1", "dictionary", base=', thinking = "off"')
    saved = AutoTokenizer.from_pretrained(run / "model")
    text = saved.apply_chat_template(
        [{"role": "user", "content": "가"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<think>\n\n</think>\n\n")
    assert ask(run, ["두통은?"], tokens=4)[0].base is not None
