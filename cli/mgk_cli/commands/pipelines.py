"""``mgk pipelines``."""

from __future__ import annotations

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "pipelines",
    cls=Command,
    short_help="List the installed pipelines and phases.",
    epilog="Example: mgk pipelines --json",
)
@options.json_option
def command(*, as_json: bool) -> None:
    """List the installed pipelines and phases and the package each comes from.

    One that fails to load is listed with the reason.
    """
    from mgk_cli.console import make, show
    from mgk_cli.listing import installed, print_json
    from mgk_core.config.catalog import PHASES, PIPELINES

    found = [*installed(PIPELINES, "pipeline"), *installed(PHASES, "phase")]
    if as_json:
        print_json(found)
        return
    from mgk_cli.listing import catalogue

    show(*catalogue(found, make().width))
