"""``mgk new-plugin``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli.lazy import Command


@click.command(
    "new-plugin",
    cls=Command,
    short_help="Create a new plugin as a complete Python package.",
    epilog="Example: mgk new-plugin adapter my-adapter",
)
@click.argument("kind")
@click.argument("name")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory.  [default: mgk-NAME]",
)
def command(*, kind: str, name: str, directory: Path | None) -> None:
    """Write the plugin NAME of a KIND: package metadata, code, tests and README.

    Kinds: adapter, merge-rule, transform, optimizer, probe, gate, recovery, retention, data,
    observer, objective, pipeline. Its tests pass as written; replace the example's formula with
    your own, and run 'mgk check-plugin NAME --plugin DIR' while you work.
    """
    from mgk_cli.console import line
    from mgk_core.tools.scaffold import plain_name, write_plugin

    written = write_plugin(kind, name, directory)
    for path in written:
        line(str(path))
    out = directory or Path(f"mgk-{plain_name(name)}")
    line(f"next: pip install -e '{out}[test]', then: python -m pytest {out}")
