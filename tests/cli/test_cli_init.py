"""``mgk init``: what it asks, what it writes, and that what it writes runs."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.host.manager import load_plugins
from mgk_phases.starter import Answers, phases, starter

ROWS = [
    {"prompt": f"{w}에 좋은 것은?", "completion": f"{w}에는 쉼이다."}
    for w in "가나다라마바사아자차카타"
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to a directory with two data files."""
    monkeypatch.chdir(tmp_path)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "chat.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "한글 책.txt").write_text(
        "첫째 문단이다.\n\n둘째 문단이다.\n", encoding="utf-8"
    )
    return tmp_path


def resolved(text, folder):
    """Return the configuration that a file of this text has."""
    path = folder / "written.toml"
    path.write_text(text, encoding="utf-8")
    return resolve(load_tree(file=path), load_plugins().registry).config


@pytest.mark.parametrize("hardware", ["cpu", "gpu", "small-gpu"])
@pytest.mark.parametrize("keep", [(), ("ko",), ("ko", "en", "한글 책.txt")])
def test_every_answer_gives_a_configuration_without_an_error(folder, hardware, keep):
    """And each answer is in it."""
    answers = Answers(
        "tiny-gemma", ("chat.jsonl", "한글 책.txt"), hardware, keep, "runs/x"
    )
    config = resolved(starter(answers), folder)
    assert config.name == "x"
    assert [phase.data.train for phase in config.phases] == [
        "chat.jsonl",
        "한글 책.txt",
    ] or [list(phase.data.train) for phase in config.phases] == [
        ["chat.jsonl"],
        ["한글 책.txt"],
    ]
    assert config.base.quantize == ("nf4" if hardware == "small-gpu" else "none")
    assert config.base.checkpointing == (hardware != "cpu")
    assert config.run.device == ("cpu" if hardware == "cpu" else "cuda")
    assert len(config.phases[0].data.base_probes) == len(keep)
    guarded = [spec.type for spec in config.phases[0].retention]
    assert guarded == (["drift-guard"] if keep and hardware != "small-gpu" else [])
    assert ("keep-base" in [gate.type for gate in config.phases[0].gate]) == bool(keep)


def test_names_of_phases_are_keys_and_different():
    """Whatever the sources are called."""
    found = phases(("a b.csv", "x/a b.json", "hub:me/set?split=train", "한글.txt", "…"))
    assert list(found) == ["a-b", "a-b-2", "set", "data", "data-2"]


def test_options_answer_and_the_plan_is_shown(mgk, folder):
    """Nothing is asked where every question has an option; the last line is the next command."""
    ran = mgk(
        "init", "my.toml", "--base", "tiny-gemma", "--data", "chat.jsonl", "--hardware", "cpu", "--keep", "nothing",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "wrote my.toml" in ran.out
    assert "nothing was trained" in ran.out
    assert ran.out.splitlines()[-1] == "next: mgk run --config my.toml --out runs/my"


@pytest.mark.slow
def test_what_it_writes_runs(mgk, folder):
    """From the answers to a finished run, on the tiny base."""
    assert (
        mgk(
            "init",
            "my.toml",
            "--data",
            "chat.jsonl",
            "--keep",
            "ko",
            "--hardware",
            "cpu",
            "--no-plan",
        ).code
        == 0
    )
    ran = mgk(
        "run",
        "--config",
        "my.toml",
        "--out",
        "runs/my",
        "--set",
        "defaults.evaluate.limit=4",
        "--quiet",
    )
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "chat.json"), "chat.json: no such file"),
        (("--data", "chat.jsonl", "--keep", "kr"), "kr: no such file"),
        (("--data", "chat.jsonl", "--hardware", "gpus"), "did you mean 'gpu'"),
        (("--data", " , "), "expected at least one file"),
        ((), "--data is missing"),
    ],
)
def test_a_wrong_answer_writes_nothing(mgk, folder, options, words):
    """The message names it, with exit code 2."""
    ran = mgk("init", "my.toml", *options, "--no-plan")
    assert ran.code == 2
    assert words in ran.err
    assert not (folder / "my.toml").exists()


def test_an_existing_file_stays(mgk, folder):
    """It may be somebody's work."""
    (folder / "mgk.toml").write_text("mine")
    assert mgk("init", "--data", "chat.jsonl", "--no-plan").code == 2
    assert (folder / "mgk.toml").read_text() == "mine"


def test_on_a_terminal_it_asks_five_questions(folder):
    """Enter takes what stands in brackets."""
    terminal, other = pty.openpty()
    asking = subprocess.Popen(
        [sys.executable, "-m", "mgk_cli", "init", "asked.toml", "--no-plan"],
        stdin=other, stdout=other, stderr=other, close_fds=True,
    )  # fmt: skip
    os.close(other)
    shown = b""
    for mark, answer in ((b"1/5", b"\n"), (b"2/5", b"chat.jsonl\n"), (b"3/5", b"cpu\n"), (b"4/5", b"en\n"), (b"5/5", b"\n")):  # fmt: skip
        while mark not in shown or not shown.rstrip(b" ").endswith(b":"):
            shown += os.read(terminal, 1024)
        os.write(terminal, answer)
        time.sleep(0.05)
    try:
        while data := os.read(terminal, 1024):
            shown += data
    except OSError:  # Linux, when the other side has ended
        pass
    os.close(terminal)
    assert asking.wait(60) == 0, shown.decode()
    assert b"next: mgk run --config asked.toml --out runs/asked" in shown
    assert 'id = "tiny-gemma"' in (folder / "asked.toml").read_text()
