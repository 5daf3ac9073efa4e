"""``mgk config``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "config",
    cls=Command,
    short_help="Print the resolved configuration and where each value comes from.",
    epilog="Example: mgk config textmodel --set run.seed=3 > my.toml",
)
@options.PIPELINE
@options.config_options
@options.machine_options
@options.without_option
def command(
    *, pipeline: str | None, config: Path | None, overrides: tuple[str, ...],
    device: str | None, seed: int | None, without: tuple[str, ...],
) -> None:  # fmt: skip
    """Print the resolved configuration of PIPELINE as TOML, with the source of each value.

    The output is itself a configuration file: pass it to --config.
    """
    from mgk_cli.console import pipe_may_close
    from mgk_cli.formatting import clean
    from mgk_core.config.render import to_toml
    from mgk_core.config.resolve import load_tree
    from mgk_core.run.setup import prepare

    tree = load_tree(pipeline, config, overrides, {"device": device, "seed": seed})
    toml = to_toml(prepare(tree, without).resolved)
    with pipe_may_close():
        print(clean(toml, lines=True), end="")
