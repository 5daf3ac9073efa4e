"""``mgk export``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "export",
    cls=Command,
    short_help="Export the phases of a run as one adapter.",
    epilog="Example: mgk export runs/korean-medical-1 --as-adapter --out adapters/korean-medical",
)
@options.RUN
@click.option(
    "--as-adapter",
    is_flag=True,
    required=True,
    help="Export one PEFT adapter for the original base; its rank is the sum of the phases' ranks.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory.",
)
@options.base_option
@options.without_option
@options.json_option
def command(
    *, run: Path, as_adapter: bool, out: Path, base: Path | None, without: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Export the merged phases of RUN as one adapter that PEFT loads onto the original base.

    Use it to share a result when the base itself may not be redistributed. Base plus adapter is
    compared with the run's final weights before anything is written. The full model is in RUN/model.
    """
    import attrs

    from mgk_cli.console import line
    from mgk_cli.formatting import count
    from mgk_cli.listing import print_json
    from mgk_cli.progress import waiting
    from mgk_core.tools.export import export_adapter

    if not as_adapter:  # click requires the flag, but a caller from Python may omit it
        raise click.UsageError(
            "pass --as-adapter to export an adapter; the full model is already in RUN/model"
        )
    with waiting("exporting", silent=as_json):
        made = export_adapter(run, out, without=without, base=base)
    if as_json:
        print_json([attrs.asdict(made)])
        return
    low, high = made.ranks
    line(f"adapter {made.directory}: {' + '.join(made.phases)}")
    line(
        f"rank {low if low == high else f'{low} to {high}'}, {count(made.parameters)} parameters"
    )
    line(
        f"base + adapter vs the run's weights: error {made.verification.error:.2g},"
        f" tolerance from rounding {made.verification.bound:.2g}"
    )
    for name in made.left_out:
        line(f"not included: {name} was not merged; its adapter is in {run}/phases")
