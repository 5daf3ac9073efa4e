"""``mgk show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from mgk_core.tools.run_summary import RunLook


@click.command(
    "show",
    cls=Command,
    short_help="Show one run, or several side by side.",
    epilog="Example: mgk show runs/textmodel-1 runs/textmodel-2",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also draw one run's matrix as PNG, SVG or PDF.",
)
@options.json_option
def command(*, runs: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """Show phases, scores, retention matrix, ledger, memory and timings of RUN; several side by side.

    Everything is read back from the run directory; no plugin and no model is needed.
    """
    from mgk_cli.compare import side_by_side
    from mgk_cli.console import make, show
    from mgk_cli.listing import print_json
    from mgk_cli.run_view import summary
    from mgk_core.tools.run_summary import look

    if plot is not None and len(runs) != 1:
        raise click.UsageError("--plot draws one run's matrix; name one RUN")
    found = [look(run) for run in runs]
    if as_json:
        print_json([as_table(run) for run in found])
    elif len(found) == 1:
        show(*summary(found[0], heat=True))
    else:
        show(*side_by_side(found, make().width))
    if plot is not None:
        draw(found[0], plot)


def draw(run: RunLook, path: Path) -> None:
    """Let an installed plugin draw the matrix; nothing that was there is overwritten."""
    from mgk_cli.console import note
    from mgk_core.config.catalog import PICTURES, entries
    from mgk_core.contract.errors import EnvironmentFault, InputError, StoreError

    if not run.retention:
        raise InputError(f"{run.directory}: has no retention matrix to draw")
    if path.exists():
        raise InputError(f"{path}: is there already; choose another --plot")
    drawers = [e for e in entries(PICTURES) if e.name == "retention"]
    if not drawers:
        raise EnvironmentFault(
            f"no installed plugin draws a retention matrix (entry-point group {PICTURES!r})"
        )
    try:
        drawers[0].load()(run.retention, path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from None
    note(f"wrote {path}")


def as_table(run: RunLook) -> dict[str, Any]:
    """Return a run as plain data; the journal stays where it is."""
    import attrs

    return attrs.asdict(run, filter=lambda a, _: a.name != "journal")
