"""Two hundred bases that are broken or hostile: configurations, weights, indexes, tokenizers, templates.

One in twelve runs by itself; all of them with MGK_FAULTS (`make faults`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from attrs import frozen

Change = Callable[[bytes], bytes | None]
WEIGHTS, CONFIG, TOKENS = "model.safetensors", "config.json", "tokenizer.json"
SETTINGS, INDEX, GENERATION = (
    "tokenizer_config.json", "model.safetensors.index.json", "generation_config.json",
)  # fmt: skip
TEXTS = ("당뇨병은 혈당이 높은 병이다.", "고혈압은 흔하다.", "The heart pumps blood.")
RUN = """
name = "own"
[base]
type = "hf"
id = "./given"
[run]
threads = 1
[defaults.gate]
min-gain = false
[phases.one]
adapter = {type = "lora", rank = 2, alpha = 4}
optimizer = {type = "sgd"}
train = {steps = 1}
[phases.one.data]
type = "dictionary"
layout = "kcd"
train = "x.tsv"
style = "chat"
"""
ROWS = "kcd\ten\tko\nI10\tHypertension\t고혈압\nJ45\tAsthma\t천식\nM10\tGout\t통풍\n"
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
EVERY = 12


@frozen
class Case:
    """One way to spoil a base. changes: file → what becomes of its bytes (empty where it is new)."""

    name: str
    changes: Mapping[str, Change]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the files of a small base with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mgk_hf.tiny import tiny_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer(TEXTS, 320)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]}
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def value(key: str, new: Any) -> Change:
    """Set one key of a JSON file."""
    return lambda data: json.dumps({**json.loads(data or b"{}"), key: new}).encode()


def text(new: str | bytes) -> Change:
    """Replace a file."""
    return lambda _: new if isinstance(new, bytes) else new.encode()


def configurations() -> Iterator[Case]:
    """Yield configurations that say what the weights are not, or what no model is."""
    sizes = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
    )
    for key in (*sizes, "vocab_size", "num_hidden_layers"):
        for new in (7, 4096, -8, 0, "wide", [16], {"a": 1}, 10**12):
            yield Case(f"config {key} {new}", {CONFIG: value(key, new)})
    for key in ("hidden_act", "rope_parameters", "model_type"):
        for new in ("none such", 3.5, ["x"]):
            yield Case(f"config {key} {new}", {CONFIG: value(key, new)})
    for name, new in (
        ("empty", b""), ("null", b"null"), ("a string", b'"x"'), ("not UTF-8", b"\xff\xfe{}"),
        ("NaN", b'{"hidden_size": NaN}'), ("cut", b'{"model_type": "llama"'),
        ("deep", b'{"a":' * 5000), ("no kind", b"{}"), ("a number", b"7"), ("a page", b"<html></html>"),
        ("twice", b"{}{}"), ("two lines", b"{}\n{}"), ("a comment", b"// {}"), ("binary", b"\0" * 64),
    ):  # fmt: skip
        yield Case(f"config {name}", {CONFIG: text(new)})


def header(change: Callable[[dict[str, Any]], None]) -> Change:
    """Change a safetensors file's table."""

    def changed(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + size])
        change(table)
        new = json.dumps(table).encode()
        return len(new).to_bytes(8, "little") + new + data[8 + size :]

    return changed


def entry(table: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """Return a tensor's entry of the table."""
    found: dict[str, Any] = [v for k, v in table.items() if k != "__metadata__"][number]
    return found


def weights() -> Iterator[Case]:
    """Yield weight files whose table lies, and files that are no weights."""
    for name, new in (
        (
            "overlap",
            lambda t: entry(t, 1).update(data_offsets=entry(t)["data_offsets"]),
        ),
        ("negative", lambda t: entry(t).update(data_offsets=[-4, 60])),
        ("turned", lambda t: entry(t)["data_offsets"].reverse()),
        (
            "gap",
            lambda t: entry(t).update(data_offsets=[4, entry(t)["data_offsets"][1]]),
        ),
        ("beyond", lambda t: entry(t).update(data_offsets=[0, 2**62])),
        ("offsets of text", lambda t: entry(t).update(data_offsets=["a", "b"])),
        ("one offset", lambda t: entry(t).update(data_offsets=[0])),
        ("negative shape", lambda t: entry(t).update(shape=[-1, -8])),
        ("shape overflow", lambda t: entry(t).update(shape=[2**40, 2**40])),
        ("shape of text", lambda t: entry(t).update(shape="big")),
        ("no shape", lambda t: entry(t).pop("shape")),
        ("dtype", lambda t: entry(t).update(dtype="PICKLE")),
        ("dtype of another width", lambda t: entry(t).update(dtype="F64")),
        ("entry is a list", lambda t: t.update(x=[1])),
        ("metadata is a number", lambda t: t.update(__metadata__=7)),
        ("a tensor less", lambda t: t.pop(next(k for k in t if "q_proj" in k))),
        (
            "a tensor of another name",
            lambda t: t.update({"../../x": t.pop("model.norm.weight")}),
        ),
    ):
        yield Case(f"weights {name}", {WEIGHTS: header(new)})
    for name, new in (
        ("empty", b""), ("one byte", b"\0"), ("zeros", b"\0" * 4096), ("a pickle", b"\x80\x04K\x01."),
        ("a zip", b"PK\x03\x04" + b"\0" * 99), ("a page", b"<!DOCTYPE html><html></html>"),
        ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ("a huge header", (2**63 - 1).to_bytes(8, "little")),
        ("a header that is no JSON", (9).to_bytes(8, "little") + b"not a dict"),
        ("a header that is no UTF-8", (4).to_bytes(8, "little") + b"\xff\xff\xff\xff"),
    ):  # fmt: skip
        yield Case(f"weights {name}", {WEIGHTS: text(new)})
    yield Case("weights cut by a byte", {WEIGHTS: lambda data: data[:-1]})
    yield Case("weights longer by a byte", {WEIGHTS: lambda data: data + b"x"})


def indexes() -> Iterator[Case]:
    """Yield indexes of shards that are not there, or lead out of the directory."""
    places: tuple[Any, ...] = (
        "../outside.safetensors", "/etc/passwd", "missing.safetensors", "", ".", "..", 7, None, ["x"],
        "sub/../../outside.safetensors", "https://example.invalid/x.safetensors", "config.json", "a\0b",
    )  # fmt: skip
    for place in places:
        table = {"metadata": {}, "weight_map": {"model.norm.weight": place}}
        yield Case(
            f"index {place!r}",
            {WEIGHTS: lambda _: None, INDEX: text(json.dumps(table))},
        )
    for name, new in (
        ("empty", b""), ("list", b"[]"), ("no map", b"{}"), ("map is a list", b'{"weight_map": []}'),
        ("map is empty", b'{"metadata": {}, "weight_map": {}}'), ("deep", b'{"a":' * 5000),
    ):  # fmt: skip
        yield Case(f"index {name}", {WEIGHTS: lambda _: None, INDEX: text(new)})


def inside(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what a JSON file contains."""

    def changed(data: bytes) -> bytes:
        table = json.loads(data)
        change(table)
        return json.dumps(table).encode()

    return changed


def tokenizers() -> Iterator[Case]:
    """Yield tokenizers that cannot be built, or whose ids have no row."""
    for name, new in (
        ("huge ids", lambda t: t["model"]["vocab"].update(가=10**9)),
        ("negative ids", lambda t: t["model"]["vocab"].update(가=-1)),
        ("ids of text", lambda t: t["model"]["vocab"].update(가="one")),
        ("vocabulary is a list", lambda t: t["model"].update(vocab=[1, 2])),
        ("no vocabulary", lambda t: t["model"].pop("vocab")),
        ("merges of nothing", lambda t: t["model"].update(merges=[["none", "such"]])),
        ("merges of numbers", lambda t: t["model"].update(merges=[1, 2])),
        ("unknown model", lambda t: t["model"].update(type="Magic")),
        ("no model", lambda t: t.pop("model")),
        ("added id is text", lambda t: t["added_tokens"][-1].update(id="last")),
        ("added without content", lambda t: t["added_tokens"][-1].pop("content")),
        ("post-processor unknown", lambda t: t.update(post_processor={"type": "Magic"})),
        ("post-processor of a missing token", lambda t: t["post_processor"].update(special_tokens={})),
        ("pre-tokenizer unknown", lambda t: t.update(pre_tokenizer={"type": "Magic"})),
        ("normalizer with a bad expression", lambda t: t.update(
            normalizer={"type": "Replace", "pattern": {"Regex": "(("}, "content": ""})),
        ("decoder unknown", lambda t: t.update(decoder=7)),
    ):  # fmt: skip
        yield Case(f"tokenizer {name}", {TOKENS: inside(new)})
    for name, new in (
        ("empty", b""), ("null", b"null"), ("list", b"[]"), ("cut", b'{"version": "1.0", "model"'),
        ("not UTF-8", b"\xff" * 40), ("10 MB of brackets", b"[" * 10**7),
    ):  # fmt: skip
        yield Case(f"tokenizer {name}", {TOKENS: text(new)})
    for key, new in (
        ("eos_token", 7), ("bos_token", ["a"]), ("pad_token", {"a": 1}), ("model_max_length", "long"),
        ("tokenizer_class", 5),
        ("added_tokens_decoder", {"x": {}}), ("extra_special_tokens", 9),
    ):  # fmt: skip
        yield Case(f"tokenizer settings {key}", {SETTINGS: value(key, new)})
    for new in (b"", b"[1]", b'"x"', b"\xff", b"{"):
        yield Case(f"tokenizer settings {new!r}", {SETTINGS: text(new)})


def templates() -> Iterator[Case]:
    """Yield chat templates that raise, loop, reach out, or are no templates."""
    for name, new in (
        ("raises", "{{ raise_exception('no') }}"),
        ("syntax", "{% for m in messages %}"),
        ("unknown filter", "{{ messages | nosuch }}"),
        ("unknown tag", "{% nosuch %}"),
        ("divides by zero", "{{ 1 // 0 }}"),
        ("undefined", "{{ nothing.at.all }}"),
        ("includes a file", "{% include '/etc/passwd' %}"),
        ("imports", "{% import 'os' as os %}{{ os }}"),
        ("extends", "{% extends 'base' %}"),
        ("classes", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ("globals", "{{ cycler.__init__.__globals__.os.environ }}"),
        ("environment", "{{ lipsum.__globals__['os'].popen('id').read() }}"),
        ("reads itself", "{{ self._TemplateReference__context.environ }}"),
        ("changes what it gets", "{{ messages.append({'role': 'user', 'content': 'x'}) }}"),
        ("loops long", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        ("loops without end", "{% for a in range(10**12) %}x{% endfor %}"),
        ("calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        ("a huge number", "{{ 10 ** 10 ** 9 }}"),
        ("says nothing", "nothing of the messages"),
        ("prints blanks", "{{ ' ' * 50 }}"),
        ("a namespace without end", "{% set n = namespace(i=0) %}{{ n.j.k }}"),
        ("asks for a system message", "{{ messages[0]['nosuch']['content'] }}"),
        ("a number too many", "{{ messages[9].content }}"),
        ("leaves the answer out", "{{ messages[0].content }}"),
        ("10 MB of an error", "{{ nosuch(" + "1," * 5_000_000),
    ):  # fmt: skip
        yield Case(f"template {name}", {"chat_template.jinja": text(new)})
    for new in (7, {"a": 1}, [7], [{"name": "x"}]):
        yield Case(
            f"template {new!r}",
            {
                "chat_template.jinja": lambda _: None,
                SETTINGS: value("chat_template", new),
            },
        )


def adapters() -> Iterator[Case]:
    """Yield PEFT adapters that fit nothing, in the place of a model."""
    gone: dict[str, Change] = {CONFIG: lambda _: None, WEIGHTS: lambda _: None}
    for new in (
        b"", b"[1]", b"null", b"{", b"{}", b'{"base_model_name_or_path": 7}',
        b'{"base_model_name_or_path": ""}', b'{"base_model_name_or_path": "."}',
        b'{"base_model_name_or_path": "../given"}', b'{"base_model_name_or_path": "/dev/null"}',
        b'{"base_model_name_or_path": "no/such"}',
    ):  # fmt: skip
        yield Case(f"adapter {new!r}", {**gone, "adapter_config.json": text(new)})
    yield Case("adapter beside a model", {"adapter_config.json": text(b"{}")})


def generation() -> Iterator[Case]:
    """Yield generation settings that no model can have."""
    for new in (b"[1]", b"{", b"\xff", b'"x"'):
        yield Case(f"generation {new!r}", {GENERATION: text(new)})
    for new in ("end", [[1]], {"a": 1}, ["x"]):
        yield Case(f"generation end {new!r}", {GENERATION: value("eos_token_id", new)})


ALL = [
    *configurations(), *weights(), *indexes(), *tokenizers(), *templates(), *adapters(), *generation(),
]  # fmt: skip
NOW = ALL if "MGK_FAULTS" in os.environ else ALL[::EVERY]


def test_there_are_two_hundred():
    """No two have one name."""
    assert len({case.name for case in ALL}) == len(ALL) >= 200


@pytest.mark.parametrize(
    "name", [CONFIG, TOKENS, WEIGHTS, GENERATION, "chat_template.jinja"]
)
def test_a_pipe_is_not_waited_for(answered, whole, name):
    """A file that never ends reading: refused before anything opens it."""
    files = {
        "c.toml": RUN,
        "x.tsv": ROWS,
        **{f"given/{k}": v for k, v in whole.items()},
    }
    files[f"given/{name}"] = os.mkfifo
    answered(
        ["run", "--config", "c.toml", "--out", "out", "--quiet"], "given", files=files
    )


@pytest.mark.parametrize("case", NOW, ids=[case.name for case in NOW])
def test_hostile_base(answered, whole, case):
    """Answered with exit code 2 and the base or the file; nothing is written, no code of it runs."""
    files = {"c.toml": RUN, "x.tsv": ROWS}
    for name in {**whole, **case.changes}:
        content = whole.get(name, b"")
        new = case.changes[name](content) if name in case.changes else content
        if new is not None:
            files[f"given/{name}"] = new
    answered(["run", "--config", "c.toml", "--out", "out", "--quiet"], files=files)
