"""The command ``mgk bench``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _seeds(count: int) -> Callable[[F], F]:
    """Add the options that choose seeds. count: how many by default."""

    def added(command: F) -> F:
        first = click.option(
            "--seed-from",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="The first seed.",
        )
        many = click.option(
            "--seeds",
            type=click.IntRange(1),
            default=count,
            show_default=True,
            help="How many seeds.",
        )
        return many(first(command))

    return added


_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per cell, no table."
)


@click.group(epilog="Example: mgk bench forgetting --quick")
def bench() -> None:
    """Compare methods and adapters on small tasks that ship; draw what runs remember."""


@bench.command(
    epilog="Example: mgk bench forgetting --suite superni --method drift-guard --results results"
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="permuted, rotated, split (digits; the default), characters; korean, the shipped pipeline on its real"
    " base; superni, long (found in $MGK_REALDATA) or a folder of tasks. The last four go alone.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Methods; default: all. naive and joint are always there. For tasks of texts NAME@RATE is a method at"
    " another learning rate.",
)
@_seeds(5)
@click.option(
    "--quick", is_flag=True, help="Two seeds and the methods that have figures to hold."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes; default: one per CPU, for korean and tasks of texts one.",
)
@click.option(
    "--base",
    help="For korean and tasks of texts: another base than the pipeline's, as base.id (tiny-gemma, a directory).",
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
    "--order", help="For tasks of texts: an order of orders.json; default: the first."
)
@click.option(
    "--train",
    type=click.IntRange(1),
    help="For tasks of texts: most training rows of a task (160).",
)
@click.option(
    "--test",
    type=click.IntRange(2),
    help="For tasks of texts: most test rows of a task (60).",
)
@click.option(
    "--tokens",
    type=click.IntRange(16),
    help="For tasks of texts: most tokens of an example (192).",
)
@click.option(
    "--epochs",
    type=click.FloatRange(0, min_open=True),
    help="For tasks of texts: epochs of each task (1).",
)
@click.option(
    "--generate",
    type=click.IntRange(0),
    help="For tasks of texts: test rows of a task whose answers are generated and scored by Rouge-L (20).",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    help="For tasks of texts: folder with one JSON a cell; cells that are there are not run again.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the table (Markdown, LaTeX, CSV), cells.jsonl, picture.svg.",
)
@_as_json
def forgetting(**options: Any) -> None:
    """Measure what each method forgets and what it still learns.

    Tasks one after the other, each a phase that is merged. The suites on digits and characters ship and need no
    network. Plain merging (naive) and joint training are always there, as the closed gap is relative to them.
    With --out, also files in each format and a picture (needs matplotlib).
    """
    from mgk_bench.forgetting import Options, run

    run(Options(**options))


@bench.command(epilog="Example: mgk bench adapters --adapter dora --adapter lora-mlp")
@click.option(
    "--adapter",
    "names",
    multiple=True,
    help="lora (always there), lora-attention, lora-mlp, rslora, pissa, milora, dora, peft:OFT, peft:VERA;"
    " default: all, those of PEFT where it is installed.",
)
@_seeds(3)
@_as_json
def adapters(names: tuple[str, ...], seeds: int, seed_from: int, **shown: bool) -> None:
    """Compare kinds of adapters at the same number of trained parameters.

    The suite is characters: three kinds of text one after the other, each adapter merged after its phase, no method
    against forgetting. AP is compared with LoRA on all linear layers seed by seed.
    """
    from mgk_bench.adapters import as_text, chosen, lines, records, run
    from mgk_bench.characters import suite
    from mgk_bench.forgetting import show, tell

    kinds = chosen(names)
    rows, cells = run(suite, kinds, range(seed_from, seed_from + seeds), tell)
    found = as_text(lines(rows, cells))
    if shown["as_json"]:
        found = "\n".join(records(rows, cells))
    show(found, [])


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
