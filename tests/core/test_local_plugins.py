"""Plugins that are loaded from their directories: ``--plugin DIR`` and MGK_PLUGIN_DIRS."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mgk_core.config import local_plugins
from mgk_core.contract.errors import InputError
from mgk_core.host.manager import load_plugins
from mgk_core.tools.scaffold import write_plugin


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A written plugin, and a finder that forgets it afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(local_plugins._FINDER, "found", {})
    write_plugin("gate", "my-local", tmp_path / "plugin")
    yield tmp_path / "plugin"
    sys.modules.pop("mgk_my_local", None)
    sys.modules.pop("mgk_my_local.plugin", None)


def test_a_directory_is_found_as_if_it_were_installed(directory):
    """Its plugin, types, distribution and version; a second time changes nothing."""
    local_plugins.add_directory(directory)
    local_plugins.add_directory(directory)
    plugins = load_plugins()
    (info,) = [i for i in plugins.infos if i.name == "my-local"]
    assert (info.distribution, info.version, info.error) == (
        "mgk-my-local",
        "0.1.0",
        None,
    )
    assert plugins.registry.find("gate", "my-local").plugin == "my-local"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("x = [", "not valid TOML"),
        ('[project]\nname = "x"\n', "declares no entry point of mgk"),
    ],
)
def test_a_directory_without_a_plugin_is_refused(tmp_path, content, said):
    """The message says what was expected there."""
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(InputError, match=said):
        local_plugins.add_directory(tmp_path)


@pytest.mark.slow
def test_the_command_line_loads_one(directory):
    """In a process of its own: listed with --plugin and with the variable, unknown without."""
    command = [sys.executable, "-m", "mgk_cli", "plugins", "--json"]
    plain = {k: v for k, v in os.environ.items() if k != local_plugins.VARIABLE}
    named = {**plain, local_plugins.VARIABLE: str(directory)}
    cases = (
        ([*command, "--plugin", str(directory)], plain),
        (command, named),
        (command, plain),
    )
    listed = []
    for arguments, environment in cases:
        done = subprocess.run(
            arguments,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        listed.append('"my-local"' in done.stdout)
    assert listed == [True, True, False]
