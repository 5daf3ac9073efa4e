"""Directories that are no base, or a hostile one."""

from __future__ import annotations

import json
import pickle

import pytest

CONFIG = """
name = "own"
[base]
type = "hf"
id = "./given"
[run]
threads = 1
[phases.one]
adapter = {type = "lora", rank = 2, alpha = 4}
optimizer = {type = "sgd"}
data = {type = "text", train = "x.jsonl"}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the files of a base that loads."""
    import torch

    from mgk_core.config.resolve import structure_spec
    from mgk_core.host.hooks import Hooks
    from mgk_core.host.manager import load_plugins

    hooks = Hooks(load_plugins())
    spec = structure_spec(
        hooks.plugins.registry, "base", {"type": "hf", "id": "tiny-gemma"}
    )
    folder = tmp_path_factory.mktemp("base")
    hooks.build_model(spec, torch.device("cpu")).save(folder)
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def config(**more):
    """Change the base's config.json."""
    return lambda data: json.dumps(json.loads(data) | more).encode()


def header(change):
    """Change what a safetensors file says of its tensors."""

    def changed(data):
        size = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + size])
        change(table)
        text = json.dumps(table).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return changed


def first(table):
    """Return the first tensor's entry."""
    return next(v for k, v in table.items() if k != "__metadata__")


WEIGHTS = "model.safetensors"
CODE = b"open('pwned', 'w').close()\n"
CASES = {
    "missing": (None, {}, "./given"),
    "a file": ({}, {"given": "text"}, "given"),
    "empty": ({}, {"given/notes.txt": "mine"}, "given"),
    "no config": ({"config.json": None}, {}, "given"),
    "config that is not json": ({"config.json": lambda d: d[:40]}, {}, "given"),
    "config that is a list": ({"config.json": lambda _: b"[1]"}, {}, "given"),
    "config nested without end": ({"config.json": lambda _: b"[" * 100_000}, {}, "given"),
    "config of an unknown kind": ({"config.json": config(model_type="gemmma")}, {}, "given"),
    "config that is no language model": ({"config.json": config(model_type="vit", architectures=["ViTModel"])}, {}, "given"),
    "config with other widths": ({"config.json": config(hidden_size=48)}, {}, "given"),
    "config with a wrong type": ({"config.json": config(hidden_size="wide")}, {}, "given"),
    "config with widths below zero": ({"config.json": config(hidden_size=-8)}, {}, "given"),
    "config with widths beyond memory": ({"config.json": config(vocab_size=10**13)}, {}, ""),
    "no weights": ({WEIGHTS: None}, {}, "given"),
    "weights of nothing": ({WEIGHTS: lambda _: b""}, {}, "given"),
    "weights cut short": ({WEIGHTS: lambda d: d[: len(d) // 2]}, {}, "given"),
    "weights with a header without end": ({WEIGHTS: lambda d: (2**60).to_bytes(8, "little") + d[8:]}, {}, "given"),
    "weights with a broken header": ({WEIGHTS: lambda d: d[:8] + b"x" + d[9:]}, {}, "given"),
    "weights with another shape": ({WEIGHTS: header(lambda t: first(t)["shape"].reverse())}, {}, "given"),
    "weights with an unknown dtype": ({WEIGHTS: header(lambda t: first(t).update(dtype="F12"))}, {}, "given"),
    "weights with offsets beyond the file": (
        {WEIGHTS: header(lambda t: first(t).update(data_offsets=[0, 2**50]))}, {}, "given",
    ),
    "weights without a tensor": ({WEIGHTS: header(lambda t: t.pop("model.norm.weight"))}, {}, "given"),
    "pickled weights alone": ({WEIGHTS: None, "pytorch_model.bin": lambda _: pickle.dumps({"a": 1})}, {}, "mgk reads no pickles"),
    "an index that leads out": (
        {WEIGHTS: None, "model.safetensors.index.json": lambda _: json.dumps(
            {"metadata": {}, "weight_map": {"model.norm.weight": "../../outside.safetensors"}}
        ).encode()}, {"outside.safetensors": b"x"}, "given",
    ),
    "code of its own": (
        {"config.json": config(model_type="own", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}),
         "code.py": lambda _: CODE}, {}, "given",
    ),
    "no tokenizer": ({"tokenizer.json": None, "tokenizer_config.json": None}, {}, "holds no tokenizer"),
    "a tokenizer that is not json": ({"tokenizer.json": lambda d: d[:99]}, {}, "given"),
    "a tokenizer of another kind": ({"tokenizer.json": lambda _: b'{"version": "9"}'}, {}, "given"),
    "a link in a circle": (None, {"given": lambda p: p.symlink_to(p)}, "given"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_base(answered, whole, name):
    """Each is answered with the base's name and what is wrong with it; no code of it runs."""
    changes, more, *words = CASES[name]
    files = {"c.toml": CONFIG, "x.jsonl": '{"text": "글 하나"}\n', **more}
    if changes:
        for file in {**whole, **changes}:
            content = whole.get(file, b"")
            changed = (
                changes[file](content)
                if callable(changes.get(file))
                else changes.get(file, content)
            )
            if changed is not None:
                files[f"given/{file}"] = changed
    answered(
        ["run", "--config", "c.toml", "--out", "out", "--quiet"], *words, files=files
    )
