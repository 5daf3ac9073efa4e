"""The command ``mgk bench``."""

from __future__ import annotations

from pathlib import Path

import click

SUITES = ("permuted", "rotated", "split", "characters", "korean")
DIGITS = SUITES[:3]
KOREAN = "korean"


@click.group(epilog="Example: mgk bench forgetting --quick")
def bench() -> None:
    """Compare methods on small tasks that ship; draw what runs remember."""


@bench.command(
    epilog="Example: mgk bench forgetting --suite split --method drift-guard --seeds 2 --out bench"
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=click.Choice(SUITES),
    help="Suites; default: the three on digits. korean, the shipped pipeline on its real base, goes alone.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Methods; default: all. naive, full-ft and joint are always there.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How many seeds.",
)
@click.option(
    "--seed-from",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The first seed.",
)
@click.option(
    "--quick", is_flag=True, help="Two seeds and the methods that have figures to hold."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes; default: one per CPU, for korean one.",
)
@click.option(
    "--base",
    help="For korean: another base than the pipeline's, as base.id (tiny-gemma, a directory).",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="For korean: steps of each phase; default: the pipeline's.",
)
@click.option(
    "--items",
    type=click.IntRange(2),
    help="For korean: items of each probe; default: all.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for table.md, cells.jsonl, picture.svg.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per cell, no table."
)
def forgetting(
    suites: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: int,
    seed_from: int,
    quick: bool,  # noqa: FBT001 - click passes options by name
    workers: int | None,
    base: str | None,
    steps: int | None,
    items: int | None,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - as above
) -> None:
    """Measure what each method forgets and what it still learns.

    A base task and the phases that follow it, on tasks that ship: no network, CPU. Rows naive, full-ft
    and joint are always there. With --out, also every cell as JSON, and a picture (needs matplotlib).
    """
    from mgk_bench.methods import QUICK, QUICK_KOREAN

    chosen_seeds = range(seed_from, seed_from + (2 if quick else seeds))
    cut = (base, steps, items)
    if KOREAN in suites:
        methods = methods or (QUICK_KOREAN if quick else ())
        _refuse("--suite korean goes alone", wrong=len(set(suites)) > 1)
        _korean(methods, chosen_seeds, cut, workers or 1, out, as_json=as_json)
        return
    methods = methods or (QUICK if quick else ())
    _refuse(
        "--base, --steps and --items are for --suite korean",
        wrong=any(c is not None for c in cut),
    )
    from mgk_bench.grid import records, run_grid, write
    from mgk_bench.table import as_text

    chosen = suites or DIGITS
    cells, lines = run_grid(chosen, methods, chosen_seeds, workers, tell=_tell)
    shown = "\n".join(records(cells, chosen)) if as_json else as_text(lines)
    _show(shown, [] if out is None else write(out, cells, lines, chosen))


def _korean(
    methods: tuple[str, ...],
    seeds: range,
    cut: tuple[str | None, int | None, int | None],
    workers: int,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    from mgk_bench.korean import Cut, run_suite
    from mgk_bench.korean_table import as_text, records, write

    cells = run_suite(methods, seeds, _tell, Cut(*cut), workers)
    shown = "\n".join(records(cells, cut)) if as_json else as_text(cells)
    _show(shown, [] if out is None else write(out, cells, cut))


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _show(table: str, written: list[Path]) -> None:
    click.echo(table)
    for path in written:
        _tell(f"wrote {path}")


def _refuse(message: str, *, wrong: bool) -> None:
    from mgk_core.contract.errors import InputError

    if wrong:
        raise InputError(message)


@bench.command(epilog="Example: mgk bench heatmap runs/korean --out retention.svg")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("retention.svg"),
    show_default=True,
)
def heatmap(run: Path, out: Path) -> None:
    """Draw a run's retention matrix as PNG, SVG or PDF."""
    from mgk_bench.heatmap import heatmap as draw
    from mgk_core.contract.errors import InputError

    source = run / "retention.json"
    if not source.exists():
        raise InputError(
            f"{run}: no retention.json in it; expected a directory that 'mgk run' wrote"
        )
    click.echo(f"wrote {draw(source, out)}")
