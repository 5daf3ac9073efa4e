"""``mgk plugins``."""

from __future__ import annotations

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
def command(*, without: tuple[str, ...], as_json: bool) -> None:
    """List the plugins in the order in which hooks call them, with package, types and hooks.

    A plugin that fails to load is listed with the reason; the others are not affected.
    """
    from mgk_cli.console import show
    from mgk_cli.listing import other_orders, plugin_rows, plugins_drawn, print_json
    from mgk_cli.tables import text
    from mgk_core.host.manager import load_plugins

    plugins = load_plugins(without=without)
    rows = plugin_rows(plugins)
    if as_json:
        print_json(rows)
    else:
        orders = [text(order, "dim") for order in other_orders(plugins)]
        show(*plugins_drawn(rows), *orders)
