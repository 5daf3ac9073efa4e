"""Kills under phases that train the base's own weights: rows of its table, whole layers, then LoRA on them."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

CONFIG = """
name = "own"
[base]
type = "hf"
id = "{given}/base"
dtype = "bfloat16"
new_tokens = ["하나둘"]
[run]
threads = 1
device = "cpu"
[defaults]
optimizer = {{type = "adamw", lr = 1e-2}}
train = {{steps = 3, batch_size = 4, log_every = 1, checkpoint_steps = 1}}
data = {{type = "text", max_length = 24, test_share = 0.25}}
[phases.table]
data = {{train = "{given}/one.jsonl", probe = "p1"}}
adapter = {{type = "rows", new = true, scripts = ["hangul"]}}
[phases.ends]
data = {{train = "{given}/one.jsonl", probe = "p2"}}
adapter = {{type = "full", targets = ["layers.0", "model.norm"]}}
[phases.rest]
data = {{train = "{given}/two.jsonl", probe = "p3"}}
adapter = {{type = "lora", rank = 2, alpha = 4}}
"""


@pytest.fixture(scope="module")
def given(shelf, server):
    """A base, two files of text and a configuration."""
    folder = shelf / "given-weights"
    folder.mkdir()
    for name, word in (("one", "하나둘"), ("two", "둘")):
        rows = [{"text": f"글 {i} {word} 가나"} for i in range(16)]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "c.toml").write_text(CONFIG.format(given=folder), encoding="utf-8")
    assert server("base", folder / "base")["code"] == 0
    return folder


@pytest.mark.slow
def test_trained_weights_survive_kills(
    server, shelf, given, same_end, kills, places, counted
):
    """A run killed in a `rows`, a `full` or the following phase ends with the digests of one that was not."""
    reference, config = shelf / "weights", str(given / "c.toml")
    operated = server("run", reference, config=config, disk={"kind": "Counting"})
    assert operated["code"] == 0, operated
    ledger = json.loads((reference / "ledger.json").read_text())
    assert [p["result"] for p in ledger["phases"]] == ["committed"] * 3
    assert len({p["merged"] for p in ledger["phases"]}) == 3
    wanted = max(4, kills // 8)
    count = counted("kills resumed with equal digests", wanted, "of rows and full")
    for i in range(wanted):
        run, at = next(places), 1 + int(operated["count"] * (i + 0.5) / wanted)
        disk = {"kind": "Killing", "at": at, "when": ("before", "after", "half")[i % 3]}
        answer = server("run", run, config=config, disk=disk)
        assert answer["signal"] == signal.SIGKILL, answer
        begun = (run / "run.toml").exists()
        again = server("resume", run) if begun else server("run", run, config=config)
        assert again["code"] == 0, again["message"]
        same_end(run, reference)
        shutil.rmtree(run)
        count.right += 1
