"""``mgk rebuild``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "rebuild",
    cls=Command,
    short_help="Rebuild the model of a run up to a phase, or without one.",
    epilog="Example: mgk rebuild runs/textmodel-1 --until plain_text --out models/after-text",
)
@options.RUN
@click.option(
    "--until",
    metavar="PHASE",
    help="Stop after this phase: the model exactly as it was then, bit for bit.",
)
@click.option(
    "--without",
    "leave_out",
    multiple=True,
    metavar="PHASE",
    help="Leave out this phase's delta. May be repeated.",
)
@click.option(
    "--scale",
    multiple=True,
    metavar="PHASE=FACTOR",
    help="Scale this phase's delta. May be repeated.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory for the model.",
)
@options.base_option
@options.without_option
@options.json_option
def command(
    *, run: Path, until: str | None, leave_out: tuple[str, ...], scale: tuple[str, ...], out: Path,
    base: Path | None, without: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Rebuild the model of RUN from its base and adapters, without training.

    A prefix (--until) is checked against the ledger: it must be bit-identical on the same device,
    thread count and library versions. --without and --scale make a model that the run never had,
    so none of its scores are known.
    """
    import attrs

    from mgk_cli.console import line
    from mgk_cli.formatting import digest
    from mgk_cli.listing import print_json
    from mgk_cli.progress import waiting
    from mgk_core.tools.rebuild_model import rebuild

    factors = dict(map(_factor, scale))
    with waiting("rebuilding", silent=as_json):
        made = rebuild(
            run,
            out,
            until=until,
            leave_out=leave_out,
            scales=factors,
            without=without,
            base=base,
        )
    if as_json:
        print_json([attrs.asdict(made)])
        return
    line(
        f"model {made.directory}: base + {' + '.join(_term(p, made.scales) for p in made.phases) or 'no phase'}"
    )
    if made.recorded is None:
        line(
            f"weights {digest(made.weights)}…; the run never had this model, so its scores are not known"
        )
    else:
        line(f"weights {digest(made.weights)}…, identical to the ledger")


def _factor(text: str) -> tuple[str, float]:
    """Parse PHASE=FACTOR."""
    name, equals, value = text.partition("=")
    try:
        factor = float(value)
    except ValueError:
        factor = float("nan")
    if not equals or not name or not -1e6 < factor < 1e6:
        raise click.UsageError(
            f"--scale {text}: expected PHASE=FACTOR, such as mcq=0.5"
        )
    return name, factor


def _term(phase: str, scales: object) -> str:
    factor = scales.get(phase, 1.0) if isinstance(scales, dict) else 1.0
    return phase if factor == 1.0 else f"{factor:g}·{phase}"
