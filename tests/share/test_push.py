"""`mgk push`, sent by the hub's own library to a hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_double import TOKEN, Hub

from mgk_share.push.parcel import shortened

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub():
    double = Hub()
    yield double
    double.shutdown()
    double.server_close()


@pytest.fixture
def push(hub, language_run, tmp_path):
    """Return ``mgk push RUN …`` as a process of its own, since the library reads its addresses at import."""

    def run(*arguments, token=TOKEN, endpoint=None):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": endpoint or hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {}),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "mgk_cli", "push", str(language_run), *arguments],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


def test_a_model_arrives_whole_and_loads(push, hub, language_run, tmp_path):
    """Weights byte for byte; what the hub has is what was listed; transformers loads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = push("me/small")
    assert done.returncode == 0, done.stderr
    assert f"sent: {hub.address}/me/small/commit/" in done.stdout
    sent, model = hub.files["me/small"], language_run / "model"
    assert set(sent) == {p.name for p in model.iterdir()}
    assert all(f"  {name}  " in done.stdout for name in sent)
    assert sent["model.safetensors"] == (model / "model.safetensors").read_bytes()
    for name, data in sent.items():
        (tmp_path / name).write_bytes(data)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)
    assert hub.private == {"me/small": False}


@pytest.mark.parametrize("options", [[], ["--adapter"]])
def test_no_path_of_the_machine_and_no_data_is_sent(push, hub, language_run, options):
    """The run's base and data were given by absolute paths, which its own files name."""
    done = push("me/small", *options)
    assert done.returncode == 0, done.stderr
    sent = hub.files["me/small"]
    named = b"".join(
        data for name, data in sent.items() if not name.startswith("tokenizer.")
    )
    for secret in {language_run.parent, Path.home() / "x", Path.cwd()}:
        assert str(secret).removesuffix("x").encode() not in named
    row = (language_run.parent / "lessons.jsonl").read_text().splitlines()[0]
    assert not any(json.loads(row)["text"].encode() in data for data in sent.values())
    if not options:
        assert b"lessons.jsonl" in sent["mgk-run.toml"]
        assert "of this machine shortened" in done.stdout


def test_an_adapter_arrives_with_a_card(push, hub):
    """One PEFT adapter; the card names the library and its phases."""
    done = push("me/adapter", "--adapter", "--private")
    assert done.returncode == 0, done.stderr
    sent = hub.files["me/adapter"]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= set(
        sent
    )
    assert "model.safetensors" not in sent
    card = sent["README.md"].decode()
    assert 'library_name: "peft"' in card
    assert "one PEFT adapter" in card
    assert hub.private == {"me/adapter": True}


def test_a_dry_run_asks_nothing_and_needs_no_token(push, hub):
    """It lists what would be sent."""
    done = push("me/small", "--dry-run", token=None)
    assert done.returncode == 0, done.stderr
    assert "README.md" in done.stdout
    assert "nothing was sent" in done.stdout
    assert hub.asked == []


def test_without_a_token_nothing_begins(push, hub):
    """The message names how to get one."""
    done = push("me/small", token=None)
    assert done.returncode == 3
    assert "hf auth login" in done.stderr
    assert hub.asked == []


def test_a_wrong_token_is_named(push, hub):
    """The hub's answer and what to do."""
    done = push("me/small", token="hf_wrong")
    assert done.returncode == 3
    assert "answered 401" in done.stderr
    assert hub.files == {}


def test_a_hub_that_does_not_answer(push):
    """It is not a traceback."""
    done = push("me/small", endpoint="http://127.0.0.1:9")
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr


def test_private_does_not_become_public(push, hub):
    """An existing public repository is refused before a file is sent."""
    hub.private["me/small"] = False
    done = push("me/small", "--private")
    assert done.returncode == 2
    assert "exists and is public" in done.stderr
    assert hub.files == {}


@pytest.mark.parametrize("name", ["small", "me/", "a/b/c", "me/..", "me/sm all"])
def test_a_name_that_the_hub_does_not_allow(push, name):
    """It is refused here."""
    done = push(name, "--dry-run")
    assert done.returncode == 2
    assert name in done.stderr


def test_shortened_keeps_what_only_looks_alike():
    """A path is replaced with all that follows it; a longer name and a web address stay."""
    text = (
        '"/home/me/base/x.json" /home/me /home/men https://x.org/home/me/y ../home/me'
    )
    assert shortened(text, ["/home/me/base", "/home/me"]) == (
        '"x.json" me /home/men https://x.org/home/me/y ../home/me',
        2,
    )
    assert shortened('"/d/\\uac00/b"', ["/d/가"])[0] == '"b"'
