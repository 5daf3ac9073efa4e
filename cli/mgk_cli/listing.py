"""Lists of what is installed: pipelines, phases, plugins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mgk_cli.console import line
from mgk_cli.formatting import several
from mgk_cli.tables import Column, fitted, text
from mgk_core.contract.json_numbers import finite

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mgk_core.host.blame import PluginInfo
    from mgk_core.host.manager import Plugins


def print_json(rows: Sequence[Any]) -> None:
    """Print one JSON object per line; NaN and infinity as text, as in a run's files."""
    for row in rows:
        line(json.dumps(finite(row), ensure_ascii=False, default=str))


def installed(group: str, kind: str) -> list[dict[str, Any]]:
    """Load each entry point of a group on its own, so that a broken one does not hide the others."""
    from mgk_core.config.catalog import entries
    from mgk_core.contract.errors import MgkError

    rows = []
    for entry in entries(group):
        row: dict[str, Any] = {
            "kind": kind,
            "name": entry.name,
            "distribution": f"{entry.distribution} {entry.version}".strip(),
        }
        try:
            loaded = entry.load()
            row |= {
                "title": loaded.title,
                "phases": [p.name for p in getattr(loaded, "phases", ())],
                "error": None,
            }
        except (MgkError, AttributeError) as error:
            row |= {"title": "", "phases": [], "error": str(error)}
        rows.append(row)
    return rows


def catalogue(rows: Sequence[dict[str, Any]], width: int) -> Iterator[RenderableType]:
    """Draw pipelines and phases."""
    columns = [
        Column("name"),
        Column("kind", spare=3),
        Column("phases", spare=2),
        Column("from", spare=1),
        Column("title"),
    ]
    for row in rows:
        title = (
            text(row["title"])
            if row["error"] is None
            else text(f"failed to load: {row['error']}", "bold red")
        )
        cells = [
            text(row["name"], "bold"),
            text(row["kind"]),
            text(" → ".join(row["phases"])),
            text(row["distribution"]),
            title,
        ]
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    yield fitted(columns, width) if rows else text("no pipelines installed")


def plugin_rows(plugins: Plugins) -> list[dict[str, Any]]:
    """Return one row per plugin, in the order in which hooks call them."""
    types: dict[str, dict[str, list[str]]] = {}
    for claim in plugins.registry:
        types.setdefault(claim.plugin, {}).setdefault(claim.slot, []).append(claim.type)
    called = reversed(plugins.infos)  # pluggy calls the last registered plugin first
    return [
        _plugin_row(
            number, info, types.get(info.name, {}) if info.error is None else {}
        )
        for number, info in enumerate(called, 1)
    ]


def other_orders(plugins: Plugins) -> Iterator[str]:
    """Yield each hook that is not called in the order of the list, and the order in which it is."""
    from mgk_core.contract.hookspecs import spec_names

    listed = [info.name for info in reversed(plugins.infos) if info.error is None]
    for hook in spec_names():
        called = plugins.call_order(hook)
        if called != [name for name in listed if name in called]:
            yield f"{hook.removeprefix('mgk_')} is called in this order: {', '.join(called)}"


def _plugin_row(
    number: int, info: PluginInfo, types: dict[str, list[str]]
) -> dict[str, Any]:
    state = "left out" if info.left_out else "ok" if info.error is None else "broken"
    return {
        "order": number,
        "name": info.name,
        "distribution": f"{info.distribution} {info.version}".strip(),
        "module": info.module,
        "state": state,
        "error": info.error,
        "warnings": list(info.warnings),
        "hooks": [h.removeprefix("mgk_") for h in info.hooks],
        "types": types,
    }


def plugins_drawn(rows: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
    """Draw one block per plugin: name and package, then types and hooks."""
    from rich.padding import Padding

    styles = {"ok": "green", "left out": "dim", "broken": "bold red"}
    for row in rows:
        head = (
            text(f"{row['order']} ")
            .append(row["name"], "bold")
            .append(f"  {row['distribution']}  {row['module']}  ", "dim")
        )
        yield head.append(row["state"], styles[row["state"]])
        if row["error"]:
            yield Padding(text(row["error"], "red"), (0, 0, 0, 4), expand=False)
        for warning in row["warnings"]:
            yield Padding(text(warning, "yellow"), (0, 0, 0, 4), expand=False)
        for slot, types in row["types"].items():
            yield Padding(
                text(f"{slot}: ", "dim").append(", ".join(types), "not dim"),
                (0, 0, 0, 4),
                expand=False,
            )
        if row["hooks"]:
            yield Padding(
                text(f"hooks: {', '.join(row['hooks'])}", "dim"),
                (0, 0, 0, 4),
                expand=False,
            )
    broken = sum(r["state"] == "broken" for r in rows)
    if broken:
        yield text(
            f"{several(broken, 'plugin')} failed to load; use --without-plugin NAME to run without"
            f" {'it' if broken == 1 else 'them'}",
            "yellow",
        )
