"""``mgk plan``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "plan",
    cls=Command,
    short_help="Dry run: show steps, memory and disk without training.",
    epilog="Example: mgk plan textmodel --set phases.mcq.adapter.rank=16",
)
@options.PIPELINE
@options.config_options
@options.machine_options
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Plan a run in N processes: memory and traffic of each.  [default: 1]",
)
@options.without_option
@click.option(
    "--hooks", is_flag=True, help="Also list which plugins implement which hooks."
)
@options.json_option
def command(
    *, pipeline: str | None, config: Path | None, overrides: tuple[str, ...],
    device: str | None, seed: int | None, nproc: int, without: tuple[str, ...], hooks: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Dry run of PIPELINE: show data, steps, parameters, memory, disk, plugins and conflicts.

    The model is loaded and the data is read, but nothing is trained and only caches are written.
    """
    import attrs

    from mgk_cli.commands.run import DEFAULT
    from mgk_cli.console import make, show
    from mgk_cli.listing import print_json
    from mgk_cli.plan_view import drawn
    from mgk_cli.progress import waiting
    from mgk_core.config.resolve import load_tree
    from mgk_core.run.setup import prepare
    from mgk_core.tools.plan import make_plan

    named = pipeline if pipeline is not None or config is not None else DEFAULT
    tree = load_tree(named, config, overrides, {"device": device, "seed": seed})
    with waiting("planning", silent=as_json):
        plan = make_plan(prepare(tree, without), ranks=nproc)
    if as_json:
        print_json([attrs.asdict(plan) | {"memory_peak": plan.peak, "disk": plan.disk}])
    else:
        show(*drawn(plan, make().width, hooks=hooks))
