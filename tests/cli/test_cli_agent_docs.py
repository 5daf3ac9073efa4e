"""``mgk agent-docs``: what it tells an assistant is true of this version."""

import json
import re

import pytest

from mgk_cli.commands.agent_docs import TOPICS
from mgk_cli.lazy import foreign
from mgk_cli.main import COMMANDS


@pytest.mark.parametrize("topic", TOPICS)
def test_every_command_that_a_topic_names_exists(mgk, topic):
    """And each of its options."""
    ran = mgk("agent-docs", topic)
    assert ran.code == 0
    used = re.findall(r"`mgk ([a-z][a-z-]*)([^`]*)`", ran.out)
    assert used
    for name, rest in used:
        assert name in {*COMMANDS, *foreign()}
        help_ = mgk(name, "--help").out
        assert all(
            option in help_
            for option in re.findall(r"(?<!\S)--[a-z-]+", rest)
            if name != "recipes"
        )


def test_the_first_one_lists_all(mgk):
    """So an assistant that knows the one command finds the rest."""
    out = mgk("agent-docs").out
    assert all(f"`mgk agent-docs {topic}`" in out for topic in TOPICS)


def test_an_unknown_topic_names_the_nearest(mgk):
    """With exit code 2."""
    ran = mgk("agent-docs", "eror")
    assert ran.code == 2
    assert "did you mean 'errors'" in ran.err


def test_the_pipeline_that_it_shows_plans(mgk, tmp_path, monkeypatch):
    """Followed literally, with the two files that it names."""
    monkeypatch.chdir(tmp_path)
    text = mgk("agent-docs", "pipeline").out
    (tmp_path / "two.toml").write_text(
        re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1], encoding="utf-8"
    )
    notes = [{"text": f"Note {i}: rest helps."} for i in range(20)]
    chat = [
        {
            "messages": [
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": f"{i}."},
            ]
        }
        for i in range(20)
    ]
    for name, rows in (("notes", notes), ("chat", chat)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in rows)
        )
    ran = mgk("plan", "--config", "two.toml")
    assert ran.code == 0, ran.err
    assert "2 chat" in ran.out
