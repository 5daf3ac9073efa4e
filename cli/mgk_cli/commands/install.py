"""``mgk install``."""

from __future__ import annotations

import click

from mgk_cli.lazy import Command


@click.command(
    "install",
    cls=Command,
    short_help="Install a plugin with pip.",
    epilog="Example: mgk install my-adapter --index ./wheels",
)
@click.argument("name")
@click.option(
    "--index",
    metavar="DIR|URL",
    help="A directory of wheels, or a package index.  [default: pip's]",
)
def command(*, name: str, index: str | None) -> None:
    """Install the distribution mgk-NAME with pip, and list the plugins that it registers.

    NAME may end in ==VERSION. With a directory as --index nothing is downloaded.
    """
    from mgk_cli.console import line
    from mgk_core.tools.install import install

    plugins = install(name, index)
    line(f"installed {name}; plugins: {', '.join(plugins) or 'none registered'}")
    for plugin in plugins:
        line(f"next: mgk check-plugin {plugin}")
