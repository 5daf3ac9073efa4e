"""``mgk show``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "show",
    cls=Command,
    short_help="Show one run, or several side by side.",
    epilog="Example: mgk show runs/textmodel-1",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@options.json_option
def command(*, runs: tuple[Path, ...], as_json: bool) -> None:
    """Show phases, scores, retention matrix, ledger, memory and timings of each RUN."""
    from mgk_cli.console import show
    from mgk_cli.summary import summary
    from mgk_core.inspect import look

    for run in runs:
        show(*summary(look(run), heat=True))
