"""Kills and changes under a language model in bfloat16: residuals, a tokenizer, a base and data of the user's own."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

from mgk_core.tools.verify_run import audit

CONFIG = """
name = "own"
[base]
type = "hf"
id = "{given}/base"
dtype = "bfloat16"
[run]
threads = 1
device = "cpu"
[defaults]
adapter = {{type = "lora", rank = 2, alpha = 4}}
optimizer = {{type = "adamw", lr = 1e-2}}
train = {{steps = 3, batch_size = 4, log_every = 1, checkpoint_steps = 1}}
retention = {{drift-guard = {{sketch = 4}}}}
[phases.one]
data = {{type = "text", train = "{given}/one.jsonl", max_length = 24, test_share = 0.25, probe = "p1"}}
[phases.two]
data = {{type = "text", train = "{given}/two.jsonl", max_length = 24, test_share = 0.25, probe = "p2"}}
"""


@pytest.fixture(scope="module")
def given(shelf, server):
    """A base, two files of text and a configuration; the server has run it once, so that children need not import."""
    folder = shelf / "given"
    folder.mkdir()
    for name, word in (("one", "하나"), ("two", "둘")):
        lines = [
            json.dumps({"text": f"글 {i} {word}"}, ensure_ascii=False)
            for i in range(16)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "c.toml").write_text(CONFIG.format(given=folder))
    assert server("base", folder / "base")["code"] == 0
    server("warm", shelf / "warm-language", config=str(folder / "c.toml"))
    return folder


@pytest.fixture(scope="module")
def language(server, shelf, given):
    """A run that nothing stopped."""
    out = shelf / "language"
    answer = server("run", out, config=str(given / "c.toml"), disk={"kind": "Counting"})
    assert answer["code"] == 0, answer
    return out, answer


def test_residuals_survive_kills(
    server, language, given, same_end, kills, places, counted
):
    """A bf16 base keeps what its weights cannot hold beside them; a killed run ends with the same of both."""
    reference, operated = language
    assert (reference / "phases/0-one/residual.safetensors").exists()
    wanted = max(4, kills // 8)
    count = counted(
        "kills resumed with equal digests", wanted, "of a language model in bfloat16"
    )
    for i in range(wanted):
        run, at = next(places), 1 + int(operated["count"] * (i + 0.5) / wanted)
        disk = {"kind": "Killing", "at": at, "when": ("before", "after", "half")[i % 3]}
        answer = server("run", run, config=str(given / "c.toml"), disk=disk)
        assert answer["signal"] == signal.SIGKILL, answer
        begun = (run / "run.toml").exists()
        answer = (
            server("resume", run)
            if begun
            else server("run", run, config=str(given / "c.toml"))
        )
        assert answer["code"] == 0, answer["message"]
        same_end(run, reference)
        shutil.rmtree(run)
        count.right += 1


def flip(path):
    """Change one bit of a weight."""
    data = bytearray(path.read_bytes())
    data[-1] ^= (
        1  # of the exponent: a lower one would not survive the rounding to bfloat16
    )
    path.write_bytes(bytes(data))


def swap(path):
    """Let two words of the vocabulary change places."""
    table = json.loads(path.read_text(encoding="utf-8"))
    words = table["model"]["vocab"]
    one, other = sorted(words, key=words.get)[-2:]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "change", "key"),
    [
        ("base/model.safetensors", flip, "base"),
        ("base/tokenizer.json", swap, "tokenizer"),
        (
            "two.jsonl",
            lambda p: p.write_text(p.read_text().replace("글 3", "글 33")),
            "data.two",
        ),
    ],
)
def test_what_the_user_changed_is_named_with_both_values(
    server, given, places, file, change, key
):
    """A changed base, tokenizer or file of data is refused by name; put back, the run goes on."""
    run, path = next(places), given / file
    answer = server(
        "run",
        run,
        config=str(given / "c.toml"),
        signal_at={"step": int(signal.SIGTERM)},
    )
    assert answer["code"] == 130
    kept = path.read_bytes()
    try:
        change(path)
        answer = server("resume", run)
        assert answer["code"] == 2
        assert any(
            line.strip().startswith(f"{key}: was ")
            for line in answer["message"].splitlines()
        ), answer["message"]
    finally:
        path.write_bytes(kept)
    assert server("resume", run)["code"] == 0


def test_every_file_of_its_run_is_held(language, counted):
    """Model, tokenizer, residuals, statistics: a flipped bit in any of them is found and named."""
    run, _ = language
    unrecorded = {"report.html"}
    files = sorted(
        p for p in run.rglob("*") if p.is_file() and p.name not in unrecorded
    )
    assert {"residual.safetensors", "statistics.safetensors", "tokenizer.json"} <= {
        p.name for p in files
    }
    count = counted(
        "files damaged, found and named",
        len(files),
        "flipped, of a language model's run",
    )
    for path in files:
        kept = path.read_bytes()
        path.write_bytes(
            kept[: len(kept) // 2]
            + bytes([kept[len(kept) // 2] ^ 4])
            + kept[len(kept) // 2 + 1 :]
        )
        found = [f.path for f in audit(run).findings if not f.harmless]
        path.write_bytes(kept)
        assert path.relative_to(run).as_posix() in found, (path, found)
        count.right += 1
    assert audit(run).sound
