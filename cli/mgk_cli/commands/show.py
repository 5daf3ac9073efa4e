"""``mgk show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from mgk_core.tools.run_summary import RunSummary


@click.command(
    "show",
    cls=Command,
    short_help="Show a run, or compare several.",
    epilog="Example: mgk show runs/textmodel-1 runs/textmodel-2",
)
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN..."
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also plot the retention matrix of one run as PNG, SVG or PDF.",
)
@click.option("--all", "everything", is_flag=True, help="Show every table of one run.")
@options.json_option
def command(
    *, runs: tuple[Path, ...], plot: Path | None, everything: bool, as_json: bool
) -> None:
    """Show what RUN gained and what it cost; with several runs, compare them side by side.

    Everything is read from the run directory; neither plugins nor the model are needed.
    """
    from mgk_cli.compare import side_by_side
    from mgk_cli.console import make, show
    from mgk_cli.listing import print_json
    from mgk_cli.outcome import outcome
    from mgk_cli.run_view import all_tables
    from mgk_core.tools.run_summary import look

    if plot is not None and len(runs) != 1:
        raise click.UsageError("--plot takes exactly one RUN")
    if everything and len(runs) != 1:
        raise click.UsageError("--all takes exactly one RUN")
    found = [look(run) for run in runs]
    if as_json:
        print_json([as_table(run) for run in found])
    elif len(found) == 1:
        show(*(all_tables(found[0]) if everything else outcome(found[0], make().width)))
    else:
        show(*side_by_side(found, make().width))
    if plot is not None:
        draw(found[0], plot)


def draw(run: RunSummary, path: Path) -> None:
    """Plot the matrix with an installed plugin. An existing file is never overwritten."""
    from mgk_cli.console import note
    from mgk_core.config.catalog import PICTURES, entries
    from mgk_core.contract.errors import EnvironmentFault, InputError, StoreError

    if not run.retention:
        raise InputError(f"{run.directory}: no retention matrix to plot")
    if path.exists():
        raise InputError(f"{path}: already exists; choose another file for --plot")
    drawers = [e for e in entries(PICTURES) if e.name == "retention"]
    if not drawers:
        raise EnvironmentFault(
            f"no installed plugin can plot a retention matrix (entry-point group {PICTURES!r})"
        )
    try:
        drawers[0].load()(run.retention, path)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror or error}"
        ) from None
    note(f"wrote {path}")


def as_table(run: RunSummary) -> dict[str, Any]:
    """Return a run as plain data, without its journal."""
    import attrs

    return attrs.asdict(run, filter=lambda a, _: a.name != "journal")
