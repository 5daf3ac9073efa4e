"""What is promised of security, held: no code from data, no secret on disk, nothing outside the run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    p
    for folder in ("mgk", "mgk_core", "plugins", "phases", "cli")
    for p in sorted((ROOT / folder).rglob("*.py"))
]
CALLS = {"eval", "exec", "compile", "__import__"}
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
    "tarfile",
    "zipfile",
}
LOADS = {
    ("torch", "load"),
    ("torch", "save"),
    ("np", "load"),
    ("numpy", "load"),
    ("joblib", "load"),
}
OWN_DATA = {
    "mgk_core/testing/carrying.py"
}  # pickles a model it has just made, in memory, to see that it survives


def sins(path):
    """Return what a module does that could run code from data."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in CALLS
        ):
            found.append(f"{node.func.id}()")
        called = getattr(node, "func", None)
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            name = (called.value.id, called.attr)
            found += (
                [".".join(name)] if name in LOADS or called.attr == "system" else []
            )
        if isinstance(node, ast.Call) and any(k.arg == "shell" for k in node.keywords):
            found.append("shell=")
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [n for n in names if n.split(".")[0] in MODULES]
    return found


def test_no_code_from_data():
    """No pickle, eval, exec, archive or shell on anything that is read."""
    found = {p.relative_to(ROOT).as_posix(): sins(p) for p in SOURCES}
    assert len(found) > 100
    assert set(found) >= OWN_DATA
    assert {k: v for k, v in found.items() if v and k not in OWN_DATA} == {}


def test_remote_code_is_off_unless_asked_for():
    """Only the user's own configuration lets code that comes with a model run."""
    from mgk_hf.specs import HfSpec

    assert HfSpec(type="hf").trust_remote_code is False
    literal = re.compile(r"trust_remote_code\s*[=:]\s*True")
    assert [
        p.name for p in SOURCES if literal.search(p.read_text(encoding="utf-8"))
    ] == []


def test_no_secret_reaches_the_disk(tmp_path):
    """A token in the environment stands in no file of a run and in nothing that is printed."""
    secret = "hf_canary0123456789"
    out = tmp_path / "run"
    arguments = [
        "run",
        "textmodel",
        "--out",
        str(out),
        "--set",
        "run.threads=1",
        "--set",
        "defaults.gate.min-gain=false",
    ]
    few = [
        x
        for p in ("plain_text", "medical_dictionary", "mcq")
        for x in ("--set", f"phases.{p}.train.steps=1")
    ]
    environment = {
        **os.environ,
        "HF_TOKEN": secret,
        "OMP_NUM_THREADS": "1",
        "MGK_PRIVATE": secret,
    }
    command = [sys.executable, "-m", "mgk_cli", *arguments, *few]
    done = subprocess.run(
        command, env=environment, capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert secret.encode() not in done.stdout + done.stderr
    files = [p for p in out.rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [p.name for p in files if secret.encode() in p.read_bytes()] == []


def test_a_module_beside_the_user_is_no_plugin(tmp_path, monkeypatch):
    """Plugins come from installed entry points alone, never from a folder that happens to be there."""
    from mgk_core.host.manager import load_plugins

    (tmp_path / "mgk_evil").mkdir()
    (tmp_path / "mgk_evil/plugin.py").write_text("raise SystemExit('pwned')\n")
    (tmp_path / "mgk_evil/__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    infos = load_plugins().infos
    assert "mgk_evil.plugin" not in {i.module for i in infos}
    assert all(i.distribution not in {"", "?"} and i.version for i in infos)


def test_every_locked_requirement_is_pinned_with_hashes():
    """Version and hashes of each, so that another file under the same name is not installed."""
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [
            x
            for x in text.splitlines()
            if x.strip() and not x.lstrip().startswith(("#", "--"))
        ]
        assert lines, path
        assert [
            x.split()[0]
            for x in lines
            if "==" not in x.split()[0] or "--hash=sha256:" not in x
        ] == [], path


def test_the_corpus_is_large_enough(request):
    """At least 150 wrong inputs are asked, where the whole corpus is collected."""
    asked = [
        i for i in request.session.items if "answered" in getattr(i, "fixturenames", ())
    ]
    modules = {i.path.name for i in asked}
    if len(modules) < 6:
        pytest.skip("only a part of the corpus was collected")
    assert len(asked) >= 150
