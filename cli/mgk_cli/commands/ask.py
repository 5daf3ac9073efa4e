"""``mgk ask``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from mgk_core.tools.chat import Answer

SIDE_BY_SIDE = 100  # columns; on a narrower terminal the two answers are printed one below the other

EMPTY = "(empty answer)"


@click.command(
    "ask",
    cls=Command,
    short_help="Ask the base and the final model of a run the same question.",
    epilog='Example: mgk ask runs/korean-medical-1 "당뇨병의 영어 이름은"',
)
@options.RUN
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@options.TOKENS
@options.base_option
@options.without_option
@options.json_option
def command(
    *, run: Path, questions: tuple[str, ...], tokens: int, base: Path | None,
    without: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Ask the original base and the final model of RUN each QUESTION, and print both answers.

    Decoding is greedy. The tokenizer's chat template is used if it has one; a base without chat
    training continues the text instead of answering it.
    """
    import attrs

    from mgk_cli.listing import print_json
    from mgk_cli.progress import waiting
    from mgk_core.tools.chat import ask

    with waiting("loading", silent=as_json):
        answers = ask(run, questions, tokens=tokens, without=without, base=base)
    if as_json:
        print_json([attrs.asdict(a) for a in answers])
        return
    for answer in answers:
        _draw(answer)


def _draw(answer: Answer) -> None:
    from rich.table import Table

    from mgk_cli.console import make, show
    from mgk_cli.tables import text

    show(text(answer.question, "bold"))
    if make().width < SIDE_BY_SIDE:
        for name, answered in (("base", answer.base), ("final", answer.final)):
            show(text(name, "dim"))
            show(text(answered or EMPTY), indent=2)
        return
    table = Table(
        box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim", expand=True
    )
    for name in ("base", "final"):
        table.add_column(name, ratio=1)
    table.add_row(text(answer.base or EMPTY), text(answer.final or EMPTY))
    show(table)
