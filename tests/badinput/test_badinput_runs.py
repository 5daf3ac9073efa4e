"""Run directories that someone damaged, or made to do harm."""

from __future__ import annotations

import json
import os
import shutil

import pytest

RUN = "runs/one"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that has done its first phase."""
    from mgk_core.runner import run_pipeline

    out = tmp_path_factory.mktemp("stopped") / "run"
    few = {f"phases.{p}.train.steps": 2 for p in ("plain_text", "medical_dictionary", "mcq")}
    settings = {"run.threads": 1, "defaults.gate.min-gain": False, "defaults.data.items": 4, **few}
    run_pipeline("textmodel", out=out, overrides=settings, until="plain_text")
    return out


def text(change):
    """Change a file's text."""
    return lambda path: path.write_text(change(path.read_text()))


def put(content):
    """Replace a file."""
    return lambda path: path.write_bytes(content)


def away(path):
    """Move a file or folder out of the way."""
    path.rename(path.with_name("away"))


def outwards(path):
    """Put a link to another folder where a folder of the run was."""
    target = path.parents[2] / "elsewhere"
    shutil.copytree(path, target)
    away(path)
    path.symlink_to(target)


def link_to_file(path):
    """Put a link to a file of the user's in a file's place."""
    target = path.parents[2] / "precious.txt"
    target.write_text("precious")
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def dangling(path):
    """Put a link to a file that is not there, outside of the run."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.parents[2] / "not-there.txt")


STATE = "phases/0-plain_text/adapter/state.safetensors"
CASES = {
    "ledger of nothing": ("ledger.json", put(b""), "ledger.json"),
    "ledger of a list": ("ledger.json", put(b"[]"), "ledger.json"),
    "ledger of another format": ("ledger.json", text(lambda t: t.replace('"format": 1', '"format": 99')), "ledger.json"),
    "ledger nested without end": ("ledger.json", put(b"[" * 10**6), "ledger.json"),
    "ledger with another scale": ("ledger.json", text(lambda t: t.replace('"scale": 1.0', '"scale": 3.0')), "ledger.json"),
    "ledger that is a folder": ("ledger.json", lambda p: (p.unlink(), p.mkdir()), "ledger.json"),
    "ledger that is missing": ("ledger.json", away, "ledger.json"),
    "ledger that is a link": ("ledger.json", link_to_file, "ledger.json"),
    "journal of nothing": ("journal.jsonl", put(b""), "ledger.json", "journal.jsonl"),
    "journal of noise": ("journal.jsonl", put(b"\x80\x81\n" * 9), "journal.jsonl:1", "damaged"),
    "journal of other json": ("journal.jsonl", put(b'{"event": "finished"}\n'), "journal.jsonl:1", "damaged"),
    "journal nested without end": ("journal.jsonl", put(b"[" * 10**6 + b"\n"), "journal.jsonl:1"),
    "journal with a line changed": ("journal.jsonl", text(lambda t: t.replace('"committed"', '"committee"')), "journal.jsonl:"),
    "journal with a line gone": ("journal.jsonl", text(lambda t: t[t.index("\n") + 1 :]), "journal.jsonl:1"),
    "journal that is huge": ("journal.jsonl", lambda p: os.truncate(p, 2**30), "journal.jsonl", "expected at most"),
    "journal that is a link": ("journal.jsonl", link_to_file, "journal.jsonl"),
    "configuration that is missing": ("run.toml", away, "run.toml", "cannot be read"),
    "configuration that is cut short": ("run.toml", text(lambda t: t[: len(t) // 2 + 5]), "run.toml"),
    "configuration with a changed value": (
        "run.toml", text(lambda t: t.replace("lr = 0.0003", "lr = 0.3")), "was 0.0003, is 0.3", "--accept-change",
    ),
    "configuration with another phase": (
        "run.toml", text(lambda t: t.replace("[phases.mcq", "[phases.mqc")), "config.phases.mcq.adapter.alpha: was 16.0, is absent", "more",
    ),
    "configuration that names a plugin": (
        "run.toml", text(lambda t: t.replace("without = []", 'without = ["os"]')), "no such plugin",
    ),
    "metrics cut short": ("metrics.jsonl", text(lambda t: t[: len(t) // 2]), "metrics.jsonl", "cut short by"),
    "metrics that are a link": ("metrics.jsonl", link_to_file, "metrics.jsonl"),
    "base scores of nothing": ("base/scores.json", put(b""), "base/scores.json"),
    "scores with another value": ("base/scores.json", text(lambda t: t.replace('"n": 4', '"n": 5')), "base/scores.json"),
    "an adapter of nothing": (STATE, put(b""), STATE),
    "an adapter cut short": (STATE, lambda p: os.truncate(p, 500), STATE),
    "an adapter with a header without end": (STATE, put((2**62).to_bytes(8, "little") + b"{}"), STATE),
    "an adapter that is a pickle": (STATE, put(b"\x80\x04cos\nsystem\n."), STATE),
    "an adapter that is missing": (STATE, away, STATE),
    "an adapter of another shape": (STATE, "reshape", STATE),
    "an adapter of another dtype": (STATE, "retype", STATE),
    "a phase's folder that leads out": ("phases/0-plain_text", outwards, "would leave the run directory"),
    "a lock that is a link": (".lock", link_to_file, ".lock"),
    "a lock that is a link to nowhere": (".lock", dangling, ".lock"),
    "a lock that is a folder": (".lock", lambda p: p.mkdir(), ".lock"),
}  # fmt: skip


def reshape(path):
    """Write an adapter with other shapes or dtypes."""
    from safetensors.torch import load_file, save_file

    save_file({k: v.t().contiguous() for k, v in load_file(path).items()}, path)


def retype(path):
    """Write an adapter in half precision."""
    from safetensors.torch import load_file, save_file

    save_file({k: v.half() for k, v in load_file(path).items()}, path)


@pytest.mark.parametrize("name", CASES)
def test_resume(answered, stopped, tmp_path, name):
    """Resuming names what is damaged, and touches neither the run nor anything outside of it."""
    file, damage, *words = CASES[name]
    run = tmp_path / "work" / RUN
    run.parent.mkdir(parents=True)
    shutil.copytree(stopped, run)
    {"reshape": reshape, "retype": retype}.get(damage, damage)(run / file)
    answered(["resume", RUN], *words)


@pytest.mark.parametrize("name", ["ledger of a list", "journal of noise", "an adapter of nothing", "metrics cut short"])
def test_verify(answered, stopped, tmp_path, name):
    """Verification lists the same, with an exit code that is no success."""
    file, damage, *_ = CASES[name]
    run = tmp_path / "work" / RUN
    run.parent.mkdir(parents=True)
    shutil.copytree(stopped, run)
    damage(run / file)
    answer = answered(["verify", RUN])
    assert file in answer.err + answer.out


def test_a_phase_of_a_run_with_a_link(answered, stopped, tmp_path):
    """A copy for another phase takes plain files only: nobody's secret is copied along."""
    run = tmp_path / "work" / RUN
    run.parent.mkdir(parents=True)
    shutil.copytree(stopped, run)
    (tmp_path / "secret").write_text("secret")
    (run / "base/more.json").symlink_to(tmp_path / "secret")
    answered(["phase", RUN, "medical_dictionary", "--out", "new", "--set", "phases.mcq.train.steps=1"], "is a link")


def test_nothing_of_a_json_is_trusted(answered, stopped, tmp_path):
    """File names in a ledger that lead out are not followed, whoever wrote them."""
    run = tmp_path / "work" / RUN
    run.parent.mkdir(parents=True)
    shutil.copytree(stopped, run)
    path = run / "ledger.json"
    ledger = json.loads(path.read_text())
    ledger["files"]["../../../secret"] = "0" * 64
    path.write_text(json.dumps(ledger))
    answered(["resume", RUN], "ledger.json")
