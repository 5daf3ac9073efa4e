"""What a user gave to work with, none of it wrong: read by every command, written by none."""

from __future__ import annotations

import json

import pytest
import torch

from mgk_core.config.resolve import structure_spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins

CONFIG = """
name = "own"
[base]
type = "hf"
id = "./given/base"
[run]
threads = 1
[phases.one]
adapter = {type = "lora", rank = 2, alpha = 4}
optimizer = {type = "sgd"}
train = {steps = 2, batch_size = 4}
data = {type = "text", train = "given/x.jsonl", max_length = 32, test_share = 0.25}
"""
COMMANDS = (
    ("run", "--config", "given/c.toml", "--out", "out", "--quiet"),
    ("resume", "out", "--quiet"),
    (
        "phase",
        "out",
        "one",
        "--out",
        "again",
        "--set",
        "phases.one.optimizer.lr=1e-4",
        "--quiet",
    ),
    ("verify", "out", "--weights"),
    ("show", "out"),
    ("rebuild", "out", "--out", "rebuilt"),
    ("export", "out", "--as-adapter", "--out", "adapter"),
    ("ask", "out", "word", "--tokens", "2"),
)


@pytest.fixture
def given(tmp_path, monkeypatch, tokens):
    """A base directory, data and a configuration, in one folder."""
    folder = tmp_path / "given"
    hooks = Hooks(load_plugins())
    spec = structure_spec(
        hooks.plugins.registry, "base", {"type": "hf", "id": "tiny-gemma"}
    )
    hooks.build_model(spec, torch.device("cpu")).save(folder / "base")
    lines = [
        json.dumps({"text": f"글 {i} 하나와 둘"}, ensure_ascii=False) for i in range(24)
    ]
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "c.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MGK_CACHE", str(tokens))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def look(folder):
    """Return every file's bytes and when it was last changed."""
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_no_command_changes_what_was_given(given, mgk, counted):
    """Running, resuming, verifying, rebuilding, exporting and asking leave base, data and configuration alone."""
    before = look(given)
    size = sum(len(data) for data, _ in before.values())
    for command in COMMANDS:
        count = counted(
            "bytes that the user gave, unchanged",
            size,
            "by commands that do their work",
        )
        answer = mgk(*command)
        assert answer.code == 0, (command, answer.out, answer.err)
        assert look(given) == before, command
        count.right = size
