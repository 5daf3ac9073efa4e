"""A resolved configuration as TOML, each value with where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import tomlkit
from tomlkit.items import Table

from mgk_core.config.resolve import Resolved
from mgk_core.contract.settings import MANY, PhaseConfig, RunConfig
from mgk_core.contract.specs import Spec


def as_table(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain tables, as a file would hold them; None is left out."""
    table = {
        "name": config.name,
        "title": config.title,
        "base": _plain(config.base),
        "run": _plain(config.run),
        "plugins": _plain(config.plugins),
    }
    if config.probes:
        table["probes"] = _plain(config.probes)
    return table | {"phases": {p.name: _phase(p) for p in config.phases}}


def _phase(phase: PhaseConfig) -> dict[str, Any]:
    table: dict[str, Any] = {"title": phase.title}
    for attribute in attrs.fields(PhaseConfig):
        value = getattr(phase, attribute.name)
        if attribute.name in MANY:
            table[attribute.name] = {key: _plain(spec) for key, spec in _keyed(value)}
        elif attrs.has(type(value)):
            table[attribute.name] = _plain(value)
    return table


def _keyed(specs: tuple[Spec, ...]) -> Iterator[tuple[str, Spec]]:
    """Give entries of one type different keys."""
    seen: dict[str, int] = {}
    for spec in specs:
        seen[spec.type] = seen.get(spec.type, 0) + 1
        yield (
            (spec.type if seen[spec.type] == 1 else f"{spec.type}-{seen[spec.type]}"),
            spec,
        )


def _plain(instance: Any) -> Any:
    if attrs.has(type(instance)):
        pairs = (
            (a.name, getattr(instance, a.name)) for a in attrs.fields(type(instance))
        )
        return {k: _plain(v) for k, v in pairs if v is not None}
    if isinstance(instance, Mapping):
        return {str(k): _plain(v) for k, v in instance.items()}
    if isinstance(instance, (list, tuple)):
        return [_plain(v) for v in instance]
    return instance


def to_toml(resolved: Resolved) -> str:
    """Return run.toml: every value, and behind it as a comment where it came from."""
    document = tomlkit.document()
    document.add(tomlkit.comment("Every value of this run, and where it came from."))
    _fill(document, as_table(resolved.config), (), resolved)
    return tomlkit.dumps(document)


def _fill(
    into: Any, table: Mapping[str, Any], path: tuple[str, ...], resolved: Resolved
) -> None:
    for key, value in table.items():
        here = (*path, key)
        if isinstance(value, dict):
            below: Table = tomlkit.table(
                is_super_table=bool(value)
                and all(isinstance(v, dict) for v in value.values())
            )
            _fill(below, value, here, resolved)
            into.add(key, below)
            continue
        item = tomlkit.item(value)
        source = resolved.tree.sources.get(here)
        item.comment(str(source) if source else "default")
        into.add(key, item)
