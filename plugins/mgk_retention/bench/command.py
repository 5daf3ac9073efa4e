"""The command ``mgk bench``."""

from __future__ import annotations

from pathlib import Path

import click

SUITES = ("permuted", "rotated", "split", "characters")
DIGITS = SUITES[:3]


@click.group(epilog="Example: mgk bench forgetting --quick")
def bench() -> None:
    """Compare methods on small tasks that ship; draw what runs remember."""


@bench.command(epilog="Example: mgk bench forgetting --suite split --method drift-guard --seeds 2 --out bench")
@click.option(
    "--suite", "suites", multiple=True, type=click.Choice(SUITES), help="Suites; default: the three on digits."
)
@click.option(
    "--method", "methods", multiple=True, help="Methods; default: all. naive, full-ft and joint are always there."
)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="How many seeds, from 0 on.")
@click.option("--quick", is_flag=True, help="Two seeds and the methods that have figures to hold.")
@click.option("--workers", type=click.IntRange(1), help="Processes, one thread each; default: one per CPU.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for table.md, cells.jsonl, picture.svg."
)
def forgetting(
    suites: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: int,
    quick: bool,  # noqa: FBT001 - click passes options by name
    workers: int | None,
    out: Path | None,
) -> None:
    """Measure what each method forgets and what it still learns.

    A base task and the phases that follow it, on tasks that ship: no network, CPU. Rows naive, full-ft
    and joint are always there. With --out, also every cell as JSON, and a picture (needs matplotlib).
    """
    from mgk_retention.bench.grid import run_grid, write
    from mgk_retention.bench.methods import QUICK

    chosen = suites or DIGITS
    cells, lines = run_grid(
        chosen,
        methods or (QUICK if quick else ()),
        2 if quick else seeds,
        workers,
        tell=lambda text: click.echo(text, err=True),
    )
    from mgk_retention.bench.table import as_text

    click.echo(as_text(lines))
    if out is not None:
        for path in write(out, cells, lines, chosen):
            click.echo(f"wrote {path}", err=True)


@bench.command(epilog="Example: mgk bench heatmap runs/korean --out retention.svg")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("retention.svg"), show_default=True
)
def heatmap(run: Path, out: Path) -> None:
    """Draw a run's retention matrix as PNG, SVG or PDF."""
    from mgk_core.errors import InputError
    from mgk_retention.heatmap import heatmap as draw

    source = run / "retention.json"
    if not source.exists():
        raise InputError(f"{run}: no retention.json in it; expected a directory that 'mgk run' wrote")
    click.echo(f"wrote {draw(source, out)}")
