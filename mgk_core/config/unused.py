"""Defaults that nothing uses, because every phase has a value of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mgk_core.config.tree import Tree

_GIVEN = ("file", "--set")
"""Sources in which a user writes. Defaults of an installed pipeline are its author's business."""


def unused_defaults(tree: Tree) -> Iterator[str]:
    """Yield a note for each value of ``defaults`` that a user gave and that has no effect."""
    defaults = tree.values.get("defaults", {})
    phases = [
        t for t in tree.values.get("phases", {}).values() if isinstance(t, Mapping)
    ]
    for path in _leaves(defaults):
        source = tree.source(("defaults", *path))
        if source is None or source.what not in _GIVEN or not phases:
            continue
        if all(_overridden(defaults, phase, path) for phase in phases):
            key = ".".join(path)
            yield (
                f"defaults.{key} ({source}) has no effect: every phase sets its own;"
                f" set phases.NAME.{key} instead"
            )


def _leaves(
    table: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _overridden(default: Any, own: Any, path: tuple[str, ...]) -> bool:
    """Whether a phase's own table replaces the default at ``path``: by a value, or by another type."""
    for key in path:
        if not isinstance(own, Mapping):
            return True  # the phase has a single value, such as false, where the default has a table
        if "type" in own and default.get("type", own["type"]) != own["type"]:
            return True
        if key not in own:
            return False
        own, default = own[key], default[key]
    return True
