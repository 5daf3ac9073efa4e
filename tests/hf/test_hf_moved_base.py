"""A run whose base was moved: every command that needs it takes its new place, checked by digest."""

import shutil
from pathlib import Path

import pytest

from mgk_core.contract.errors import InputError
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.tools.chat import Chat, ask
from mgk_core.tools.export import export_adapter
from mgk_core.tools.rebuild_model import rebuild
from mgk_core.tools.verify_run import audit, audit_weights

SMALL = [
    "phases.plain_text=false",
    "defaults.retention.drift-guard=false",
    "defaults.gate.min-gain=false",
    "defaults.gate.keep-base=false",
    "defaults.train.steps=2",
    "defaults.evaluate.limit=2",
    "run.threads=1",
]

pytestmark = pytest.mark.slow


@pytest.fixture
def moved(saved, tmp_path):
    """Return (run stopped after its first phase, where its base is now, another base)."""
    one, other = saved("llama"), Path(saved("qwen2"))
    run, now = tmp_path / "run", tmp_path / "elsewhere" / "base"
    run_pipeline(
        "korean-medical",
        out=run,
        until="dictionary",
        overrides=[*SMALL, f"base.id={one!r}"],
    )
    now.parent.mkdir()
    shutil.move(one, now)
    return run, now, other


def test_each_command_finds_a_moved_base(moved, tmp_path):
    """Without --base the error says how; with it everything works; with another base nothing does."""
    run, now, other = moved
    with pytest.raises(InputError, match="if the base was moved, add --base DIR"):
        ask(run, ["a"], tokens=2)
    with pytest.raises(InputError, match="if the base was moved, add --base DIR"):
        resume_run(run)
    with pytest.raises(InputError, match="not the base that this run began with"):
        ask(run, ["a"], tokens=2, base=other)
    with pytest.raises(InputError, match="base: was .*, is "):
        resume_run(run, base=other)
    with pytest.raises(InputError, match="no such directory"):
        rebuild(run, tmp_path / "never", base=tmp_path / "nowhere")
    assert ask(run, ["a"], tokens=2, base=now)[0].question == "a"
    assert Chat.open(run, tokens=2, untouched=True, base=now).session.bundle is not None
    ended = resume_run(run, base=now)
    assert ended.finished
    found = audit(run)
    audit_weights(found, base=now)
    assert (found.findings, found.weights) == ([], ended.ledger.head)
    assert rebuild(run, tmp_path / "again", base=now).recorded == ended.ledger.head
    exported = export_adapter(run, tmp_path / "adapter", base=now)
    assert exported.verification.ok


def test_a_base_that_is_built_has_no_place(finished_run, tmp_path):
    """--base for a base that no directory holds is refused, not ignored."""
    with pytest.raises(InputError, match="built, not read from a directory"):
        rebuild(finished_run, tmp_path / "new", base=tmp_path)
