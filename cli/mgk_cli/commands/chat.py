"""``mgk chat``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command

HELP = "/new forgets what was said, /quit (or Ctrl-D) ends"


@click.command(
    "chat",
    cls=Command,
    short_help="Talk with a run's model.",
    epilog="Example: mgk chat runs/korean-medical-1",
)
@options.RUN
@click.option("--untouched", is_flag=True, help="Talk with the base model before any phase.")
@options.TOKENS
@options.base_option
@options.without_option
def command(
    *, run: Path, untouched: bool, tokens: int, base: Path | None, without: tuple[str, ...]
) -> None:
    """Talk with the final model of RUN; each line is one thing said.

    Lines come from standard input, so a file of questions can be piped in.
    """
    from mgk_cli.console import line
    from mgk_core.tools.chat import Chat

    asking = sys.stdin.isatty()
    if asking:
        line(f"loading {run}; {HELP}")
    chat = Chat.open(run, tokens=tokens, untouched=untouched, without=without, base=base)
    while (said := _read(asking=asking)) is not None:
        if said == "/new":
            chat.turns.clear()
        elif said:
            line(chat.say(said) or "(nothing)")


def _read(*, asking: bool) -> str | None:
    """Return the next line without its end; None at the end, or where asked to quit."""
    try:
        said = input("> " if asking else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        from mgk_core.contract.errors import InputError

        raise InputError(f"standard input: not UTF-8 ({error}); expected UTF-8 text") from None
    return None if said in ("/quit", "/exit") else said
