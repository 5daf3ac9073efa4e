"""``mgk doctor``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command

ENVIRONMENT = 3


@click.command(
    "doctor",
    cls=Command,
    short_help="Check this machine and the installation.",
    epilog="Example: mgk doctor",
)
@click.option(
    "--device", default="auto", metavar="NAME", help="Device to test.  [default: auto]"
)
@options.json_option
def command(*, device: str, as_json: bool) -> int:
    """Check Python, torch, the device, libraries, plugins, disk and memory.

    Each line is ok, warning or error, with how to fix it. Exits 3 if there is an error.
    """
    import attrs

    from mgk_cli.listing import print_json
    from mgk_core.tools.doctor import examine

    worst = 0
    for check in examine(Path("runs"), device=device):
        worst = max(worst, ENVIRONMENT if check.status == "error" else 0)
        if as_json:
            print_json([attrs.asdict(check)])
        else:
            _draw(check.name, check.status, check.text, check.mend)
    return worst


def _draw(name: str, status: str, said: str, mend: str) -> None:
    from rich.table import Table

    from mgk_cli.console import show
    from mgk_cli.tables import text

    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for width in (7, 12, None):
        table.add_column(width=width)
    style = {"ok": "green", "warning": "yellow", "error": "bold red"}[status]
    told = text(said)
    if mend and status != "ok":
        told.append(f"\n→ {mend}", style)
    elif mend:
        told.append(f" ({mend})", "dim")
    table.add_row(text(status, style), text(name), told)
    show(table)
