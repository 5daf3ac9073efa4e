"""Installing plugins from a directory of wheels, without network."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile

import pytest

from mgk_core.contract.errors import InputError
from mgk_core.tools.install import Available, available, install, uninstall


@pytest.fixture
def index(tmp_path):
    """A directory with the wheel of a plugin."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "mgk_tiny_gate-0.3.dist-info"
    files = {
        "mgk_tiny_gate.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: mgk-tiny-gate\nVersion: 0.3\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[mgk.plugins]\ntiny-gate = mgk_tiny_gate\n",
    }
    record = "".join(f"{n},sha256={_digest(t)},{len(t)}\n" for n, t in files.items())
    with zipfile.ZipFile(folder / "mgk_tiny_gate-0.3-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    (folder / "other-1.0-py3-none-any.whl").write_text("")
    return folder


def _digest(text):
    raw = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment that pip installs into in place of this one, and whose packages are seen here."""
    venv = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
        check=True,
        timeout=60,
    )
    monkeypatch.setenv("PIP_PYTHON", str(venv / "bin/python"))
    (site,) = venv.glob("lib/python*/site-packages")
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.slow
def test_a_plugin_is_installed_and_removed(index, environment):
    """By its own name; its plugins are listed, and afterwards nothing of it is left."""
    assert available(index) == [Available("mgk-tiny-gate", "0.3", None)]
    assert install("tiny-gate", str(index)) == ("tiny-gate",)
    assert available(index) == [Available("mgk-tiny-gate", "0.3", "0.3")]
    assert uninstall("mgk-tiny-gate") == "0.3"
    assert not list(environment.glob("mgk_tiny_gate*"))


@pytest.mark.parametrize(
    "name", ["../x", "x y", "--index-url=http://x", "X", "", "tiny-gate>=1", "-e"]
)
def test_a_name_that_is_not_one_is_refused(index, name):
    """Nothing that pip would read as an option or a path reaches it."""
    with pytest.raises(InputError, match="expected a plugin's name"):
        install(name, str(index))


def test_what_is_not_there_is_refused(index, tmp_path):
    """With the nearest name; an index must be a directory or a URL; what is not installed cannot be removed."""
    with pytest.raises(InputError, match="did you mean 'mgk-tiny-gate'"):
        install("tiny-gat", str(index))
    with pytest.raises(InputError, match="expected a directory of wheels, or the URL"):
        install("tiny-gate", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="expected a directory of wheels"):
        available(tmp_path / "nowhere")
    with pytest.raises(InputError, match="mgk-tiny-gate is not installed"):
        uninstall("tiny-gate")


def test_the_command_lists_a_directory(mgk, index):
    """One line for each distribution named mgk-*; other packages are left out."""
    ran = mgk("plugins", "--available", index)
    assert (ran.code, ran.out) == (0, "mgk-tiny-gate 0.3 (not installed)\n")
    (row,) = mgk("plugins", "--available", index, "--json").rows
    assert row == {"name": "mgk-tiny-gate", "version": "0.3", "installed": None}
    assert mgk("install", "tiny-gat", "--index", index).code == 2
    assert mgk("uninstall", "tiny-gate").code == 2
