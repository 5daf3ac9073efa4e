"""``mgk chat``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command

HELP = "/new starts a new conversation, /quit (or Ctrl-D) exits"


@click.command(
    "chat",
    cls=Command,
    short_help="Chat with the model of a run.",
    epilog="Example: mgk chat runs/korean-medical-1",
)
@options.RUN
@click.option(
    "--untouched", is_flag=True, help="Chat with the original base model instead."
)
@options.TOKENS
@options.base_option
@options.without_option
def command(
    *,
    run: Path,
    untouched: bool,
    tokens: int,
    base: Path | None,
    without: tuple[str, ...],
) -> None:
    """Chat with the final model of RUN, one message per line.

    Messages are read from standard input, so a file of questions can be piped in.
    """
    from mgk_cli.console import line
    from mgk_cli.progress import waiting
    from mgk_core.tools.chat import Chat

    interactive = sys.stdin.isatty()
    if interactive:
        line(f"loading {run}; {HELP}")
    with waiting("loading", silent=not interactive):
        chat = Chat.open(
            run, tokens=tokens, untouched=untouched, without=without, base=base
        )
    while (message := _read(interactive=interactive)) is not None:
        if message == "/new":
            chat.turns.clear()
        elif message:
            line(chat.say(message) or "(empty answer)")


def _read(*, interactive: bool) -> str | None:
    """Return the next message; None at the end of input or after /quit."""
    try:
        message = input("> " if interactive else "").strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        from mgk_core.contract.errors import InputError

        raise InputError(
            f"standard input: not UTF-8 ({error}); expected UTF-8 text"
        ) from None
    return None if message in ("/quit", "/exit") else message
