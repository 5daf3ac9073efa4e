"""Chats, instructions and preferences: what is learnt, what is measured, and runs with only a file."""

import json
import signal
import subprocess
import sys
import time

import attrs
import pytest
import torch

from mgk_core.contract.errors import DataError, InputError
from mgk_hf.conversation import HfConversation
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_preference.metric import evaluate as preference
from mgk_text import lengths
from mgk_text.cache import TokenCache
from mgk_text.dialogue_tasks import DialogueTask, as_chat
from mgk_text.encode import Encoder
from mgk_text.generation import evaluate
from mgk_text.load import load
from mgk_text.records import Dialogue, Message
from mgk_text.specs import AutoSpec, ChatSpec, InstructionSpec, PreferenceSpec
from mgk_validation.losses import perplexity
from mgk_validation.options import option_metric

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    ("system", "너는 의학 도우미다."),
    ("user", "갈증과 잦은 소변은 무엇의 증상인가?"),
    ("assistant", "당뇨병의 증상이다."),
    ("user", "더 짧게"),
    ("assistant", "당뇨병"),
)
PAIRS = [(f"{i}번째로 물어볼 것은 무엇인가?", f"대답 {i}이다") for i in range(12)]
INSTRUCTIONS = [{"instruction": q, "output": a} for q, a in PAIRS]
CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in PAIRS
]
PREFERENCES = [{"prompt": q, "chosen": a, "rejected": f"모른다, {a}"} for q, a in PAIRS]


@pytest.fixture(scope="module")
def chatml():
    """A tokenizer with a chat template that marks what the assistant generates, and renders tools."""
    tokenizer = build(HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu")).tokenizer
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def learnt(tokenizer, messages, tools=""):
    """Return the examples of one dialogue, in the turns of the tokenizer's template."""
    encoder = Encoder(HfConversation(tokenizer).styled("chat"))
    record = Dialogue(tuple(Message(*m) for m in messages), tools, place="a.jsonl:1")
    task = DialogueTask(ChatSpec(type="chat"))
    return task.learnt(encoder, [record], TokenCache(on_disk=False)).examples


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[:3], TURNS[1:3]])
def test_masks_are_those_of_transformers(chatml, turns):
    """What is learnt is what the template's generation marks enclose, token for token."""
    chat = [{"role": role, "content": content} for role, content in turns]
    made = chatml.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (example,) = learnt(chatml, turns)
    count = len(example.ids)
    assert list(example.ids) == made["input_ids"][:count]
    assert [int(label != -100) for label in example.labels] == made["assistant_masks"][
        :count
    ]
    assert sum(made["assistant_masks"][count:]) == 0


def test_tools_are_rendered_and_their_calls_are_learnt(chatml):
    """Tools reach the template, a call is part of what the assistant says, its result is not."""
    tools = [{"type": "function", "function": {"name": "lookup", "parameters": {}}}]
    call = json.dumps(
        [{"type": "function", "function": {"name": "lookup", "arguments": {}}}]
    )
    turns = [
        ("user", "혈압은?"),
        ("assistant", "", call),
        ("tool", "결과는 120"),
        ("assistant", "120이다."),
    ]
    (example,) = learnt(chatml, turns, json.dumps(tools))
    said = chatml.decode([i for i in example.labels if i != -100])
    whole = chatml.decode(example.ids)
    assert whole.count("lookup") == 2
    assert said.count("lookup") == 1
    assert "120이다." in said
    assert "결과는" not in said


def test_a_template_without_tools_refuses_them(chat_tokenizer):
    """A template that would leave the tools out is an error, as is plain style."""
    tools = json.dumps([{"type": "function", "function": {"name": "lookup"}}])
    chat = as_chat([Message("user", "가"), Message("assistant", "나")], tools)
    for style, reason in (
        ("chat", "does not write out tools"),
        ("plain", "style = 'chat'"),
    ):
        with pytest.raises(InputError, match=reason):
            HfConversation(chat_tokenizer).styled(style).exchanges([chat])


@pytest.mark.parametrize(
    ("rows", "kind", "names"),
    [
        (CHATS, "chat", {"chat", "chat-generated"}),
        (INSTRUCTIONS, "instruction", {"instruction", "instruction-generated"}),
        (
            PREFERENCES,
            "preference",
            {f"preference{m}" for m in ("", "-margin", "-logprob")},
        ),
    ],
)
def test_each_type_is_recognised_trained_and_measured(bundle, write, rows, kind, names):
    """A file alone gives training rows and, with a share held out, the probes of its type."""
    path = write("a.jsonl", rows)
    data = load(AutoSpec(type="auto", train=path, test_share=0.4), bundle)
    assert {p.name for p in data.probes} == names
    assert len(data.train) + len(data.probes[0].items) == len(rows)
    total, count = bundle.loss(data.train.batch([0, 1]))
    assert torch.isfinite(total / count)
    for probe in data.probes:
        few = attrs.evolve(probe, items=probe.items[:2])
        if probe.metric == "perplexity":
            score = perplexity(bundle, few)
        elif probe.metric == "generation":
            score = evaluate(bundle, few)
        elif probe.metric == "preference":
            score = preference(bundle, few)
        else:
            score = option_metric(bundle, few)
        assert score.n == 2
    titles = {
        "chat": "chat messages",
        "instruction": "Alpaca",
        "preference": "preference pairs",
    }
    assert f"read as {titles[kind]} (" in data.notes[0]


def test_without_test_data_it_says_that_nothing_is_measured(bundle, write):
    """A file alone, with nothing held out, trains, and a note says that it is not measured."""
    data = load(AutoSpec(type="auto", train=write("a.jsonl", CHATS)), bundle)
    assert data.probes == ()
    assert any(note.startswith("no test data") for note in data.notes)


def test_only_answers_that_can_be_said_are_generated(bundle, write):
    """Exact match is asked of answers that fit into new_tokens; without any there is no such probe."""
    rows = [{"instruction": q, "output": a * 9} for q, a in PAIRS[:6]] + INSTRUCTIONS[
        6:
    ]
    spec = InstructionSpec(
        type="instruction",
        train=write("a.jsonl", INSTRUCTIONS),
        test=write("b.jsonl", rows),
    )
    probes = {p.name: p for p in load(spec, bundle).probes}
    assert len(probes["instruction-generated"].items) == 6
    spec = attrs.evolve(spec, test=write("c.jsonl", rows[:6]))
    assert {p.name for p in load(spec, bundle).probes} == {"instruction"}


def test_truncation_counts_the_labels_it_costs(bundle, write):
    """truncate keeps the beginning, counts lost labels, and leaves out what teaches nothing."""
    spec = ChatSpec(type="chat", train=write("a.jsonl", CHATS))
    whole = load(spec, bundle).train
    tokens = [e for (e,) in whole.rows]
    limit = max(len(e.ids) for e in tokens) - 3
    cut = load(attrs.evolve(spec, overflow="truncate", max_length=limit), bundle)
    kept = [e for (e,) in cut.train.rows]
    lost = sum(map(lengths.learnt_in, tokens)) - sum(map(lengths.learnt_in, kept))
    assert max(len(e.ids) for e in kept) <= limit
    assert lost > 0
    assert any(f"truncated: {lost:,} learnt tokens lost" in n for n in cut.notes)
    with pytest.raises(DataError, match=rf"a\.jsonl:\d+: .*max_length is {limit}"):
        load(attrs.evolve(spec, max_length=limit), bundle)
    with pytest.raises(InputError, match="no training examples are left"):
        load(attrs.evolve(spec, overflow="truncate", max_length=8), bundle)


def test_preference_rows_have_both_answers_to_one_prompt(bundle, write):
    """Pairs share their prompt; each learns its own answer and its end; a batch has the chosen ones."""
    spec = PreferenceSpec(type="preference", train=write("a.jsonl", PREFERENCES))
    data = load(spec, bundle)
    for pair, (_, answer) in zip(data.train.pairs, PAIRS, strict=True):
        sides = (pair.chosen, pair.rejected)
        prompts = [s.ids[: len(s.ids) - lengths.learnt_in(s)] for s in sides]
        assert prompts[0] == prompts[1]
        said = [
            bundle.tokenizer.decode([i for i in s.labels if i != -100]) for s in sides
        ]
        assert [s.strip() for s in said] == [f"{answer}<eos>", f"모른다, {answer}<eos>"]
    assert int((data.train.batch([0]).labels != -100).sum()) == lengths.learnt_in(
        data.train.pairs[0].chosen
    )
    other = [*PREFERENCES[:-1], PREFERENCES[-1] | {"rejected": "달라진 대답"}]
    changed = load(attrs.evolve(spec, train=write("b.jsonl", other)), bundle)
    assert changed.train.digest != data.train.digest


def test_pairs_that_are_too_long_stay_together(bundle, write):
    """A pair goes if one of its answers is too long, so chosen and rejected answers keep their partners."""
    rows = [
        *PREFERENCES[:5],
        PREFERENCES[5] | {"rejected": "긴 대답 " * 60},
        *PREFERENCES[6:],
    ]
    spec = PreferenceSpec(
        type="preference", train=write("a.jsonl", rows), max_length=100, overflow="drop"
    )
    data = load(spec, bundle)
    assert len(data.train.pairs) == len(data.train) == 11
    assert any("1 rows over max_length 100 left out" in n for n in data.notes)
    with pytest.raises(DataError, match=r"a\.jsonl:6"):
        load(attrs.evolve(spec, overflow="error"), bundle)


def test_labelled_answers_keep_their_labels(bundle, write):
    """Each row is one answer that is good or bad; a batch has labels of the good ones only."""
    rows = [
        {"prompt": q, "completion": a, "label": i % 2 == 0}
        for i, (q, a) in enumerate(PAIRS)
    ]
    spec = PreferenceSpec(type="preference", train=write("a.jsonl", rows))
    train = load(spec, bundle).train
    assert [answer.desirable for answer in train.answers] == [r["label"] for r in rows]
    assert all(lengths.learnt_in(answer.answer) for answer in train.answers)
    good = lengths.learnt_in(train.answers[0].answer)
    assert int((train.batch([0, 1]).labels != -100).sum()) == good
    flipped = [row | {"label": not row["label"]} for row in rows]
    other = load(attrs.evolve(spec, train=write("b.jsonl", flipped)), bundle).train
    assert other.digest != train.digest


def test_a_single_labelled_answer_makes_all_rows_single(bundle, write):
    """Pairs among labelled answers become a good and a bad one; a probe measures the good ones."""
    rows = [*PREFERENCES, {"prompt": "가", "completion": "나", "label": False}]
    spec = PreferenceSpec(type="preference", train=write("a.jsonl", rows))
    answers = load(spec, bundle).train.answers
    assert [a.desirable for a in answers] == [True, False] * len(PREFERENCES) + [False]
    data = load(attrs.evolve(spec, test_share=0.4, dev_share=0.4), bundle)
    tested = [p for p in data.probes if p.split == "test"]
    assert [p.metric for p in tested] == ["preference", "perplexity"]
    assert {item.answer for item in tested[0].items[:2]} == {0, -1}
    assert len(tested[1].items) == sum(item.answer == 0 for item in tested[0].items)
    assert preference(bundle, tested[0]).n == len(tested[1].items)
    assert len(data.held_out.answers) == len(data.held_out) > 0


def test_multi_turn_examples_survive_the_cache(encoders, monkeypatch):
    """Labels with several learnt stretches, and several examples of one chat, are read back as made."""
    chats = [as_chat([Message(*turn) for turn in TURNS[1:]])] * 2
    for encoder in encoders.values():
        places = ["a:1", "a:2"]
        made = TokenCache().exchanges(encoder, chats, places)
        monkeypatch.setattr("mgk_text.cache._memory", {})
        again = TokenCache()
        assert again.exchanges(encoder, chats, places) == made
        assert again.hits == 1
        assert sorted(set(made.places)) == places


CONFIG = """
name = "own"
base = {{ type = "hf", id = "tiny-gemma" }}
[run]
threads = 1
[phases.p]
adapter = {{ type = "lora", rank = 2, alpha = 4, targets = ["*q_proj"] }}
optimizer = {{ type = "adamw", lr = 1e-3 }}
train = {{ steps = 4, batch_size = 4, checkpoint_steps = 1 }}
data.train = "{file}"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", [CHATS, INSTRUCTIONS, PREFERENCES], ids=["chat", "sft", "dpo"]
)
def test_a_run_needs_no_more_than_a_file(write, tmp_path, rows):
    """``data.train = FILE`` is a whole data table: the command line trains and saves a model."""
    config = write("c.toml", CONFIG.format(file=write("a.jsonl", rows)))
    done = mgk("run", "--config", config, "--out", str(tmp_path / "out"), "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_chat_run_resumes_to_the_same_bits(write, tmp_path):
    """A chat phase killed after a checkpoint ends, once resumed, in the adapter of a whole run."""
    text = CONFIG.format(file=write("a.jsonl", CHATS)).replace(
        "steps = 4", "steps = 60"
    )
    config = write("c.toml", text)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert (
        mgk("run", "--config", config, "--out", str(whole), "--quiet").returncode == 0
    )
    command = [
        sys.executable,
        "-m",
        "mgk_cli",
        "run",
        "--config",
        config,
        "--out",
        str(out),
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(out.glob("phases/*/checkpoint*/*")) and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    resumed = mgk("resume", str(out), "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    ledgers = [json.loads((run / "ledger.json").read_text()) for run in (whole, out)]
    assert ledgers[0]["phases"] == ledgers[1]["phases"]


def mgk(*arguments):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "mgk_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
