"""Kills across transitions that pack the merged weights anew: what is packed and what is kept beside come out the same."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

pytest.importorskip("bitsandbytes")

CONFIG = """
name = "packed"
[base]
type = "hf"
id = "{given}/base"
quantize = "nf4"
[run]
threads = 1
device = "cpu"
[defaults]
adapter = {{type = "lora", rank = 2, alpha = 4}}
optimizer = {{type = "adamw", lr = 1e-2}}
train = {{steps = 2, batch_size = 4, log_every = 1, checkpoint_steps = 1}}
merge = {{type = "original", requantize = true}}
gate = {{min-gain = false}}
"""
PHASE = """
[phases.{name}]
data = {{type = "text", train = "{given}/{name}.jsonl", max_length = 24, test_share = 0.25, probe = "p-{name}"}}
"""
TRANSITION = (
    "scores.json",
    "residual.safetensors",
    "merge.json",
    "adapter",
    "ledger.json",
)


@pytest.fixture(scope="module")
def packed(shelf, server):
    """A configuration of three phases on a packed base, a run that nothing stopped, and its operations on the disk."""
    folder = shelf / "given-packed"
    folder.mkdir()
    text = CONFIG.format(given=folder)
    for name in ("one", "two", "three"):
        lines = [
            json.dumps({"text": f"글 {i} {name}"}, ensure_ascii=False)
            for i in range(16)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        text += PHASE.format(given=folder, name=name)
    config = folder / "c.toml"
    config.write_text(text)
    assert server("base", folder / "base")["code"] == 0
    server("warm", shelf / "warm-packed", config=str(config))
    answer = server(
        "run", shelf / "packed", config=str(config), disk={"kind": "Counting"}
    )
    assert answer["code"] == 0, answer
    return config, shelf / "packed", answer


def test_packed_weights_survive_kills(server, packed, same_end, kills, places, counted):
    """Killed while a transition writes, the run packs again, to the same digests, residuals and model."""
    config, reference, operated = packed
    assert (reference / "phases/1-two/residual.safetensors").exists()
    points = [
        i + 1
        for i, name in enumerate(operated["names"])
        if any(part in name for part in TRANSITION)
    ]
    points = points[:: max(1, len(points) // max(4, kills // 4))]
    count = counted(
        "kills resumed with equal digests", len(points), "of a base that is packed anew"
    )
    for i, at in enumerate(points):
        run = next(places)
        disk = {"kind": "Killing", "at": at, "when": ("before", "after", "half")[i % 3]}
        answer = server("run", run, config=str(config), disk=disk)
        assert answer["signal"] == signal.SIGKILL, answer
        answer = server("resume", run)
        assert answer["code"] == 0, answer["message"]
        same_end(run, reference)
        shutil.rmtree(run)
        count.right += 1
