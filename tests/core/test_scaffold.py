"""A new plugin: written whole, refused where it cannot be, and right at once."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mgk_core.contract.errors import InputError
from mgk_core.tools.scaffold import class_of, kinds, module_of, write_plugin


def test_a_plugin_is_written_as_a_whole_distribution(tmp_path):
    """Metadata with its entry point, code that compiles, tests, README; no placeholder is left."""
    files = write_plugin("adapter", "my-gain", tmp_path / "x")
    names = {str(f.relative_to(tmp_path / "x")) for f in files}
    assert {
        "pyproject.toml",
        "README.md",
        "mgk_my_gain/plugin.py",
        "tests/test_mgk_my_gain.py",
    } <= names
    project = tomllib.loads((tmp_path / "x/pyproject.toml").read_text())
    assert project["project"]["name"] == "mgk-my-gain"
    assert project["project"]["entry-points"]["mgk.plugins"] == {
        "my-gain": "mgk_my_gain.plugin"
    }
    for file in files:
        text = file.read_text()
        assert not re.search(r"@[A-Z]+@", text), file
        if file.suffix == ".py":
            compile(text, file.name, "exec")


def test_the_name_of_a_distribution_names_the_same_plugin(tmp_path, monkeypatch):
    """mgk-mine is the plugin mine in the distribution mgk-mine, not mgk-mgk-mine."""
    monkeypatch.chdir(tmp_path)
    files = write_plugin("adapter", "mgk-mine")
    assert {f.parts[0] for f in files} == {"mgk-mine"}
    project = tomllib.loads((tmp_path / "mgk-mine/pyproject.toml").read_text())
    assert project["project"]["entry-points"]["mgk.plugins"] == {
        "mine": "mgk_mine.plugin"
    }


def test_names_become_modules_and_classes():
    """Hyphens go, words are joined."""
    assert module_of("my-own-rule") == "mgk_my_own_rule"
    assert class_of("my-own-rule") == "MyOwnRule"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "X",
        "a b",
        "a--b",
        "-a",
        "a-",
        "1a",
        "class",
        "",
        "a" * 41,
        "mgk-",
        "mgk\n",
        "é",
        "a\u202e",
    ],
)
def test_a_name_that_can_be_none_is_refused(tmp_path, name):
    """Nothing is written anywhere."""
    with pytest.raises(InputError, match="name"):
        write_plugin("adapter", name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(tmp_path):
    """By a type or by a plugin: two that claim one type would hinder each other."""
    with pytest.raises(
        InputError, match="adapter type 'lora' is claimed by the plugin 'lora'"
    ):
        write_plugin("adapter", "lora", tmp_path / "out")
    with pytest.raises(InputError, match="a plugin of that name is installed"):
        write_plugin("adapter", "merge", tmp_path / "out")


def test_an_unknown_kind_is_refused(tmp_path):
    """The kinds that there are are offered."""
    with pytest.raises(InputError, match="did you mean 'gate'"):
        write_plugin("gatee", "x", tmp_path / "out")


def test_a_directory_in_use_is_refused(tmp_path):
    """What is there stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(InputError, match="is not empty.*choose another --dir"):
        write_plugin("adapter", "my-gain", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_every_kind_is_written_whole(tmp_path):
    """Each of the twelve compiles, has no placeholder left, and names its entry point in its README's words."""
    for kind in kinds():
        files = write_plugin(kind, f"my-{kind}", tmp_path / kind)
        assert any(f.name.startswith("test_") for f in files)
        for file in files:
            text = file.read_text()
            assert not re.search(r"@[A-Z]+@", text), file
            if file.suffix == ".py":
                compile(text, str(file), "exec")
            if file.suffix == ".toml":
                tomllib.loads(text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(kinds()))
def test_each_kind_is_green_at_once(tmp_path, kind):
    """Untouched and not installed: its own tests pass, which run it once, and so do its README's commands."""
    where = tmp_path / "plugin"
    write_plugin(kind, f"my-{kind}", where)
    environment = {**os.environ, "MGK_PLUGIN_DIRS": str(where), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    )
    block = re.search(r"```sh\n(.*?)```", (where / "README.md").read_text(), re.DOTALL)
    install, *commands = block[1].strip().splitlines()
    assert install == "pip install -e '.[test]'"
    for command in commands:
        done = subprocess.run(
            command, cwd=where, env=environment, shell=True, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )


@pytest.mark.slow
def test_its_own_tests_pass_at_once(tmp_path):
    """Installed from its wheel beside mgk, untouched: its tests pass, and the kit's laws hold."""
    pytest.importorskip("hatchling")
    write_plugin("adapter", "my-gain", tmp_path / "plugin")
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run(
        [*install, "--target", str(site), str(tmp_path / "plugin")],
        check=True,
        timeout=120,
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        tests,
        cwd=tmp_path / "plugin",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
