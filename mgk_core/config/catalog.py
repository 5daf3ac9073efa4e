"""What is installed beside plugins: pipelines, phases and commands, loaded when they are named."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from attrs import frozen

from mgk_core.config.local_plugins import add_from_environment
from mgk_core.contract.errors import InputError, PluginError, nearest
from mgk_core.contract.pipeline import Phase, Pipeline

PIPELINES = "mgk.pipelines"
PHASES = "mgk.phases"
COMMANDS = "mgk.commands"
PICTURES = "mgk.pictures"
FORMATS = "mgk.formats"


@frozen
class Entry:
    """One entry point and the distribution that it comes from."""

    name: str
    distribution: str
    version: str
    value: str
    point: importlib.metadata.EntryPoint

    def load(self) -> Any:
        """Import what the entry names; a `PluginError` names the package and why it failed."""
        try:
            return self.point.load()
        except Exception as error:  # a foreign module may raise anything at import
            raise PluginError(
                self.name,
                f"{self.point.group} entry {self.name!r} of {self.distribution} {self.version}"
                f" cannot be loaded: {type(error).__name__}: {error}; fix or remove that package",
            ) from error


def entries(group: str) -> list[Entry]:
    """Return a group's entries, sorted by name."""
    add_from_environment()
    points = sorted(importlib.metadata.entry_points(group=group), key=lambda p: p.name)
    return [
        Entry(
            p.name,
            p.dist.name if p.dist else "?",
            p.dist.version if p.dist else "",
            p.value,
            p,
        )
        for p in points
    ]


def find_pipeline(name: str) -> Pipeline:
    """Return an installed pipeline; `InputError` offers the nearest names."""
    found: Pipeline = _find(PIPELINES, name, Pipeline, "pipeline")
    return found


def find_phase(name: str) -> Phase:
    """Return an installed phase (entry-point group ``mgk.phases``)."""
    found: Phase = _find(PHASES, name, Phase, "phase")
    return found


def _find(group: str, name: str, cls: type, what: str) -> Any:
    found = [e for e in entries(group) if e.name == name]
    if not found:
        known = [e.name for e in entries(group)]
        offer = (
            nearest(name, known)
            or f"; no installed package brings a {what}: see 'mgk plugins'"
        )
        raise InputError(f"unknown {what} {name[:100]!r}{offer}")
    if len(found) > 1:
        owners = " and ".join(f"{e.distribution} {e.version}" for e in found)
        raise InputError(f"{what} {name!r} is shipped by {owners}; uninstall one")
    loaded = found[0].load()
    if not isinstance(loaded, cls):
        raise PluginError(
            name,
            f"{group} entry {name!r}: expected a {cls.__name__}, got {type(loaded).__name__}",
        )
    return loaded
