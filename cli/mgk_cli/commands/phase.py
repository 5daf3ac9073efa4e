"""``mgk phase``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "phase",
    cls=Command,
    short_help="Run a single phase, starting from the saved phase before it.",
    epilog="Example: mgk phase runs/textmodel-1 mcq --out runs/mcq-slow --set phases.mcq.optimizer.lr=1e-4",
)
@options.RUN
@click.argument("phase")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New run directory.  [default: RUN-PHASE]",
)
@options.set_option
@options.without_option
@options.output_options
def command(
    *, run: Path, phase: str, out: Path | None, overrides: tuple[str, ...], without: tuple[str, ...],
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run PHASE of RUN, starting from the saved result of the phase before it.

    If PHASE is the next one of an unfinished RUN, it runs in place. Any other phase, or changed
    settings, goes to a new directory that starts with a copy of the earlier phases.
    """
    from mgk_cli.running import work
    from mgk_core.run.runner import run_phase

    work(
        lambda sink: run_phase(run, phase, out=out, overrides=overrides, without=without, sink=sink),
        out or run, quiet=quiet, as_json=as_json,
    )  # fmt: skip
