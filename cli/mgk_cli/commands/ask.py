"""``mgk ask``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from mgk_core.tools.chat import Answer

SIDE_BY_SIDE = 100  # columns below which the two answers stand one under the other


@click.command(
    "ask",
    cls=Command,
    short_help="Ask a run's model, base and final side by side.",
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
    """Put each QUESTION to the untouched base and to the final model of RUN.

    Answers are greedy: the most likely token each time, in the tokenizer's chat turns where it has
    them. A base model that was never taught to answer goes on with the text instead.
    """
    import attrs

    from mgk_cli.listing import print_json
    from mgk_core.tools.chat import ask

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
        for name, said in (("base", answer.base), ("final", answer.final)):
            show(text(name, "dim"))
            show(text(said or "(nothing)"), indent=2)
        return
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim", expand=True)
    for name in ("base", "final"):
        table.add_column(name, ratio=1)
    table.add_row(text(answer.base or "(nothing)"), text(answer.final or "(nothing)"))
    show(table)
