"""Run directories that someone damaged, or made to do harm."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal

import pytest

RUN = "runs/one"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that has done its first phase."""
    from mgk_core.run.runner import run_pipeline

    out = tmp_path_factory.mktemp("stopped") / "run"
    few = {
        f"phases.{p}.train.steps": 2
        for p in ("plain_text", "medical_dictionary", "mcq")
    }
    settings = {
        "run.threads": 1,
        "defaults.gate.min-gain": False,
        "defaults.data.items": 4,
        **few,
    }
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


@pytest.fixture(scope="module")
def midway(tmp_path_factory):
    """A run that a signal stopped in its first phase, with one checkpoint."""
    from mgk_core.contract.errors import Interrupted
    from mgk_core.run.runner import run_pipeline

    def stop(event):
        if event["event"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path_factory.mktemp("midway") / "run"
    settings = {
        "run.threads": 1,
        "defaults.data.items": 4,
        "phases.plain_text.train.log_every": 1,
    }
    with pytest.raises(Interrupted):
        run_pipeline("textmodel", out=out, overrides=settings, sink=stop)
    return out


def tensors(file, change):
    """Change a checkpoint's tensors."""

    def do(folder):
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / file)), folder / file)

    return do


def progress(change):
    """Change what a checkpoint says of itself."""

    def do(folder):
        path = folder / "state.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return do


def without_optimizer(folder):
    """Take a checkpoint's optimizer away, and out of its list."""
    (folder / "optimizer.safetensors").unlink()
    progress(
        lambda s: (
            s | {"files": {k: v for k, v in s["files"].items() if "optimizer" not in k}}
        )
    )(folder)


def forged(folder):
    """Make a checkpoint's digests right again, as whoever forges one would."""
    path = folder / "state.json"
    state = json.loads(path.read_text())
    if isinstance(state, dict):
        state.pop("hash", None)
        if isinstance(state.get("files"), dict):
            state["files"] |= {
                p.name: hashlib.sha256(p.read_bytes()).hexdigest()
                for p in folder.glob("*.safetensors")
            }
        text = json.dumps(state, sort_keys=True).encode()
        path.write_text(
            json.dumps(
                state | {"hash": hashlib.blake2b(text, digest_size=16).hexdigest()}
            )
        )


UNFIT = {  # what the digests say is right, and is not: told, with the checkpoint's name
    "another shape": (tensors("adapter.safetensors", lambda t: {k: v.t().contiguous() for k, v in t.items()}), "expected shape"),
    "another's names": (tensors("adapter.safetensors", lambda t: {f"x.{k}": v for k, v in t.items()}), "missing"),
    "another optimizer": (tensors("optimizer.safetensors", lambda t: t | {"state/99/tensor/m": next(iter(t.values())).clone()}), "99"),
    "random numbers cut short": (tensors("rng.safetensors", lambda t: t | {"cpu": t["cpu"][:9]}), "RNG"),
    "random numbers that are missing": (tensors("rng.safetensors", lambda t: {"cpu": t["cpu"]}), "python"),
    "a step beyond the phase": (progress(lambda s: s | {"step": 10**6}), "it is of step 1000000"),
}  # fmt: skip
LEFT_OUT = {  # no checkpoint at all: the phase begins anew, and says so
    "a file outside": progress(
        lambda s: s | {"files": s["files"] | {"../../../x.safetensors": "0" * 64}}
    ),
    "no optimizer": without_optimizer,
    "no files": progress(lambda s: {k: v for k, v in s.items() if k != "files"}),
    "a list": progress(lambda _: [1]),
    "a step of text": progress(lambda s: s | {"step": "many"}),
    "a step below zero": progress(lambda s: s | {"step": -3}),
    "figures of another length": progress(lambda s: s | {"pending": [[1.0]]}),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_checkpoint_that_does_not_fit(answered, midway, tmp_path, name):
    """Right by its digests and wrong all the same: refused, with its name and the mend."""
    change, word = UNFIT[name]
    run = tmp_path / "work" / RUN
    run.parent.mkdir(parents=True)
    shutil.copytree(midway, run)
    folder = next((run / "phases/0-plain_text/checkpoint").iterdir())
    change(folder)
    forged(folder)
    answered(
        ["resume", RUN],
        folder.name,
        "does not fit this run",
        word,
        "remove this folder",
        kept=("runs",),
    )


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_checkpoint_that_is_none(mgk, midway, tmp_path, monkeypatch, name):
    """What is no checkpoint is left out and told; nothing outside of the run is read for it."""
    monkeypatch.setenv("COLUMNS", "400")
    run = tmp_path / "run"
    shutil.copytree(midway, run)
    folder = next((run / "phases/0-plain_text/checkpoint").iterdir())
    LEFT_OUT[name](folder)
    forged(folder)
    answer = mgk("resume", run, "--until", "plain_text")
    assert answer.code in (0, 1), answer.err
    assert f"{folder.name}/state.json" in answer.out
    assert "was left out" in answer.out


@pytest.mark.parametrize(
    "name",
    [
        "ledger of a list",
        "journal of noise",
        "an adapter of nothing",
        "metrics cut short",
    ],
)
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
    answered(
        [
            "phase",
            RUN,
            "medical_dictionary",
            "--out",
            "new",
            "--set",
            "phases.mcq.train.steps=1",
        ],
        "is a link",
    )


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
