"""``mgk lr-find``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "lr-find",
    cls=Command,
    short_help="Find a learning rate: train a throw-away adapter at rising rates.",
    epilog="Example: mgk lr-find textmodel --phase mcq",
)
@options.PIPELINE
@options.config_options
@click.option("--phase", metavar="PHASE", help="Phase to test.  [default: the first]")
@click.option(
    "--from",
    "low",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-6,
    metavar="LR",
    help="Lowest learning rate.  [default: 1e-6]",
)
@click.option(
    "--to",
    "high",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    metavar="LR",
    help="Highest learning rate.  [default: 1]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=10),
    default=100,
    metavar="N",
    help="Steps, each at a higher rate.  [default: 100]",
)
@options.machine_options
@options.without_option
@options.json_option
def command(
    *, pipeline: str | None, config: Path | None, overrides: tuple[str, ...], phase: str | None, low: float,
    high: float, steps: int, device: str | None, seed: int | None, without: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Learning-rate range test of one phase of PIPELINE, on the untouched base.

    A new adapter is trained with the phase's data, optimizer and batch size while the rate rises from
    --from to --to. Prints the loss by rate and a suggestion. Nothing is written or merged.
    """
    from mgk_cli.commands.run import DEFAULT
    from mgk_cli.console import make, show
    from mgk_cli.curve import drawn
    from mgk_cli.listing import print_json
    from mgk_cli.progress import waiting
    from mgk_core.config.resolve import load_tree
    from mgk_core.run.setup import prepare
    from mgk_core.tools.lr_find import as_table, find_lr

    named = pipeline if pipeline is not None or config is not None else DEFAULT
    tree = load_tree(named, config, overrides, {"device": device, "seed": seed})
    with waiting("learning rates", silent=as_json):
        curve = find_lr(prepare(tree, without), phase, low=low, high=high, steps=steps)
    if as_json:
        print_json([as_table(curve)])
    else:
        show(*drawn(curve, make().width))
