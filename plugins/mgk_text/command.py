"""The command ``mgk data``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mgk_text.inspection import Inspection

TYPES = (
    "auto",
    "text",
    "dictionary",
    "mcq",
    "chat",
    "image-chat",
    "instruction",
    "preference",
)
ANSWERS = ("auto", "letter", "0", "1", "text")
TINY = "tiny-gemma"


@click.command(epilog="Example: mgk data chat.jsonl --base models/gemma-3-270m")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--base",
    default=TINY,
    show_default=True,
    help="Base whose tokenizer counts, as base.id.",
)
@click.option(
    "--type",
    "type_",
    type=click.Choice(TYPES),
    default="auto",
    help="What the rows are; default: recognised from the columns.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    help="As data.columns.",
)
@click.option("--layout", default="auto", show_default=True, help="As data.layout.")
@click.option("--encoding", default="", help="As data.encoding, such as cp949.")
@click.option("--delimiter", default="", help="As data.delimiter.")
@click.option(
    "--answers",
    type=click.Choice(ANSWERS),
    default="auto",
    show_default=True,
    help="As data.answers, of multiple-choice questions.",
)
@click.option(
    "--max-length",
    type=click.IntRange(8),
    default=512,
    show_default=True,
    help="As data.max_length.",
)
@click.option(
    "--probe",
    "probes",
    multiple=True,
    metavar="FILE",
    help="Held-out rows, such as an exam: training rows that share text with them are listed.",
)
@click.option(
    "--examples",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="How many to show.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def data(
    ctx: click.Context,
    files: tuple[str, ...],
    base: str,
    type_: str,
    columns: tuple[str, ...],
    layout: str,
    encoding: str,
    delimiter: str,
    answers: str,
    max_length: int,
    probes: tuple[str, ...],
    examples: int,
    as_json: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Describe training data: type, lengths, repeated and bad rows, examples.

    Also what truncation costs, and rows that a probe asks.

    FILES are what data.train takes: files, folders, globs. Nothing is trained or written. Exit code
    2 if there are bad rows.
    """
    from mgk_text.drawing import draw
    from mgk_text.inspection import inspect

    given = {
        "layout": layout,
        "encoding": encoding,
        "delimiter": delimiter,
        "max_length": max_length,
    }
    spec = _spec(type_, files, columns, answers, given)
    found = inspect(spec, _bundle(base), shown=examples, probes=probes)
    if as_json:
        click.echo(json.dumps(as_table(found, base), ensure_ascii=False))
    else:
        draw(found, base, exact=base != TINY)
    if found.problems:
        ctx.exit(2)


def _spec(
    type_: str,
    files: tuple[str, ...],
    columns: tuple[str, ...],
    answers: str,
    given: dict[str, Any],
) -> Any:
    """Return the data table that the options make; a wrong value is an error of its option."""
    from mgk_text.specs import SPECS, AutoSpec

    mapped = {}
    for pair in columns:
        name, sign, column = pair.partition("=")
        if not sign:
            raise click.BadParameter(
                f"expected FIELD=COLUMN, got {pair!r}", param_hint="--column"
            )
        mapped[name] = column
    if answers != "auto":
        if type_ not in ("auto", "mcq"):
            raise click.BadParameter(
                f"data of type {type_!r} have none", param_hint="--answers"
            )
        type_, given = "mcq", {**given, "answers": answers}
    cls = SPECS.get(type_, AutoSpec)
    try:
        return cls(type=type_, train=files, columns=mapped, cache=False, **given)
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        known = name if reason and name in given else "layout"
        raise click.BadParameter(
            reason or str(error), param_hint=f"--{known.replace('_', '-')}"
        ) from None


def _bundle(base: str) -> Any:
    import mgk

    return mgk.load_base("hf", id=base, device="cpu")


def as_table(found: Inspection, base: str) -> dict[str, Any]:
    """Return an inspection as JSON values."""
    from attrs import asdict

    table = asdict(found)
    table["base"] = base
    return table
