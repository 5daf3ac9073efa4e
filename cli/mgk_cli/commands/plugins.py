"""``mgk plugins``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "plugins",
    cls=Command,
    short_help="List the installed plugins and their hooks.",
    epilog="Example: mgk plugins",
)
@options.without_option
@options.json_option
@click.option(
    "--available",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="List what a directory of wheels has instead: name, version, version installed.",
)
def command(*, without: tuple[str, ...], as_json: bool, available: Path | None) -> None:
    """List the plugins in the order in which hooks call them, with package, types and hooks.

    A plugin that fails to load is listed with the reason; the others are not affected.
    """
    from mgk_cli.console import show
    from mgk_cli.listing import other_orders, plugin_rows, plugins_drawn, print_json
    from mgk_cli.tables import text
    from mgk_core.host.manager import load_plugins

    if available is not None:
        _list_available(available, as_json=as_json)
        return
    plugins = load_plugins(without=without)
    rows = plugin_rows(plugins)
    if as_json:
        print_json(rows)
    else:
        orders = [text(order, "dim") for order in other_orders(plugins)]
        show(*plugins_drawn(rows), *orders)


def _list_available(index: Path, *, as_json: bool) -> None:
    from attrs import asdict

    from mgk_cli.console import line
    from mgk_cli.listing import print_json
    from mgk_core.tools.install import available

    found = available(index)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        line(
            f"{each.name} {each.version} ({f'installed: {each.installed}' if each.installed else 'not installed'})"
        )
    if not found:
        line(f"{index}: no distribution named mgk-*")
