"""``mgk uninstall``."""

from __future__ import annotations

import click

from mgk_cli.lazy import Command


@click.command(
    "uninstall",
    cls=Command,
    short_help="Remove a plugin with pip.",
    epilog="Example: mgk uninstall my-adapter",
)
@click.argument("name")
def command(*, name: str) -> None:
    """Remove the distribution mgk-NAME with pip. Runs that used it are kept; they need it to resume."""
    from mgk_cli.console import line
    from mgk_core.tools.install import uninstall

    line(f"removed {name} {uninstall(name)}")
