"""Where output goes. rich is imported at the first use, so that ``--help`` stays light."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from mgk_cli.formatting import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_GONE = (errno.EPIPE, errno.EIO)
"""Errors of writing to a closed pipe or terminal."""

PIPE_WIDTH = 120  # columns if the output is not a terminal and COLUMNS is not set


@cache
def _class() -> type[Console]:
    from rich.console import Console as RichConsole

    class Quiet(RichConsole):
        """A console that keeps working, silently, after its reader has closed the pipe."""

        def on_broken_pipe(self) -> None:
            close_stdout()

    return Quiet


def make(stream: TextIO | None = None, **options: Any) -> Console:
    """Return a console for a stream (default: standard output) that prints text literally."""
    target = stream or sys.stdout
    if not target.isatty() and "width" not in options:
        with contextlib.suppress(ValueError):
            options["width"] = max(20, int(os.environ.get("COLUMNS", "")))
        options.setdefault("width", PIPE_WIDTH)
    return _class()(
        file=target,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        **options,
    )


def show(*what: RenderableType, indent: int = 0) -> None:
    """Print renderables to standard output."""
    from rich.padding import Padding

    console = make()
    for item in what:
        never_broken = bool(getattr(item, "no_wrap", False))
        with terminal_may_go():
            console.print(
                Padding(item, (0, 0, 0, indent), expand=False) if indent else item,
                soft_wrap=never_broken,
            )


def line(text: str = "") -> None:
    """Print one line of plain text without wrapping it."""
    with pipe_may_close():
        print(clean(text))


def note(text: str) -> None:
    """Print one line to standard error, so that it does not mix with the result."""
    print(clean(text), file=sys.stderr)


@contextlib.contextmanager
def pipe_may_close() -> Any:
    """Continue silently if the reader of standard output has closed the pipe."""
    with terminal_may_go(close_stdout):
        yield
        sys.stdout.flush()


@contextlib.contextmanager
def terminal_may_go(then: Callable[[], None] = lambda: None) -> Any:
    """Ignore errors of writing to a closed terminal. then: called if it is closed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise
        then()


def close_stdout() -> None:
    """Redirect standard output to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # no real file underneath (a test's buffer)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
    finally:
        os.close(nowhere)


def tolerate_foreign_text() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
