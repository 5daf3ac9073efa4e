"""``mgk export``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "export",
    cls=Command,
    short_help="Write a run's phases as one adapter.",
    epilog="Example: mgk export runs/korean-medical-1 --as-adapter --out adapters/korean-medical",
)
@options.RUN
@click.option(
    "--as-adapter",
    is_flag=True,
    required=True,
    help="As one PEFT adapter of the summed rank on the original base.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New directory."
)
@options.base_option
@options.without_option
@options.json_option
def command(
    *, run: Path, as_adapter: bool, out: Path, base: Path | None, without: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Write the merged phases of RUN as one adapter that PEFT loads onto the original base.

    This is what can be shared where the base itself may not be. Base and adapter together are held
    against the run's final weights before anything is written. The whole model lies in RUN/model.
    """
    import attrs

    from mgk_cli.console import line
    from mgk_cli.formatting import count
    from mgk_cli.listing import print_json
    from mgk_core.tools.export import export_adapter

    if not as_adapter:  # click insists on the flag; a caller from Python may not
        raise click.UsageError(
            "say what to export: --as-adapter; the whole model lies in RUN/model"
        )
    made = export_adapter(run, out, without=without, base=base)
    if as_json:
        print_json([attrs.asdict(made)])
        return
    low, high = made.ranks
    line(f"adapter {made.directory}: {' + '.join(made.phases)}")
    line(f"rank {low if low == high else f'{low} to {high}'}, {count(made.parameters)} parameters")
    line(
        f"base + adapter against the run's weights: {made.verification.error:.2g}, rounding explains {made.verification.bound:.2g}"
    )
    for name in made.left_out:
        line(f"left out: {name} was kept apart; its own adapter lies in {run}/phases")
