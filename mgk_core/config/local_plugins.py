"""Plugins that are being written: loaded from their directories, without being installed.

The directory's ``pyproject.toml`` is shown to `importlib.metadata` as if the distribution were
installed, so every way of finding entry points finds it: plugins, pipelines, phases and commands.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import tomllib
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.metadata import DistributionFinder
from pathlib import Path
from typing import Any

from mgk_core.contract.errors import InputError

VARIABLE = "MGK_PLUGIN_DIRS"
"""Directories to load, separated as in PATH: for notebooks and child processes."""


class LocalDistribution(importlib.metadata.Distribution):
    """What ``pip install`` would have recorded of a directory."""

    def __init__(self, directory: Path, project: dict[str, Any]) -> None:
        self.directory, self.project = directory, project

    def read_text(self, filename: str) -> str | None:
        """Return the two files that mgk reads."""
        if filename == "METADATA":
            name, version = self.project["name"], self.project.get("version", "0")
            return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        if filename == "entry_points.txt":
            lines = []
            for group, points in self.project.get("entry-points", {}).items():
                lines.append(f"[{group}]")
                lines += [f"{name} = {value}" for name, value in points.items()]
            return "\n".join(lines)
        return None

    def locate_file(self, path: Any) -> Any:
        """Return a file of the directory."""
        return self.directory / path


class LocalFinder(MetaPathFinder):
    """Offers the distributions added by `add_directory`; it imports nothing itself."""

    def __init__(self) -> None:
        self.found: dict[Path, LocalDistribution] = {}

    def find_spec(self, *_: Any) -> None:
        """Leave importing to the others."""

    def find_distributions(
        self, context: DistributionFinder.Context | None = None
    ) -> Iterable[importlib.metadata.Distribution]:
        """Yield those of a name, or all."""
        name = None if context is None else context.name
        for local in self.found.values():
            if (
                name is None
                or name.lower().replace("_", "-") == local.project["name"].lower()
            ):
                yield local


_FINDER = LocalFinder()


def add_directory(directory: Path) -> None:
    """Make a plugin's directory part of this process, ahead of an installed one of the same name.

    :raises InputError: there is no pyproject.toml with an entry point of mgk
    """
    where = directory.resolve()
    if where in _FINDER.found:
        return
    project = _project(directory)
    _FINDER.found[where] = LocalDistribution(where, project)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    source = where / "src"
    sys.path.insert(0, str(source if source.is_dir() else where))
    importlib.invalidate_caches()


def add_from_environment() -> None:
    """Add the directories that ``MGK_PLUGIN_DIRS`` names."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        add_directory(Path(name))


def _project(directory: Path) -> dict[str, Any]:
    path = directory / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--plugin {directory}: {path} cannot be read ({error.strerror}); expected the directory"
            " of a plugin, as 'mgk new-plugin' writes it"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"--plugin {directory}: {path} is not valid TOML: {error}"
        ) from None
    project: dict[str, Any] = table.get("project", {})
    groups = [g for g in project.get("entry-points", {}) if g.startswith("mgk.")]
    if "name" not in project or not groups:
        raise InputError(
            f"--plugin {directory}: {path} declares no entry point of mgk; expected a table"
            ' [project.entry-points."mgk.plugins"]'
        )
    return project
