"""Errors as a user sees them: message and exit code."""

from __future__ import annotations

import errno
import sys
import traceback

import click

from mgk_cli.console import terminal_may_go
from mgk_cli.formatting import clean, several

INPUT, ENVIRONMENT, INTERRUPTED = 2, 3, 130


def report(error: BaseException, *, debug: bool = False) -> int:
    """Print an error to standard error and return its exit code. debug: with the traceback."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    from mgk_core.contract.world import place  # late, for a light 'mgk --help'

    lines, code = describe(error)
    if place().rank != 0 and getattr(error, "rank", None) != 0 and not debug:
        return code  # the leader has the same error and prints it, unless it is the one that is gone
    with terminal_may_go():
        for text in lines:
            print(text, file=sys.stderr, flush=True)
    return code


def describe(error: BaseException) -> tuple[list[str], int]:
    """Return the lines of an error message and its exit code."""
    if isinstance(error, click.ClickException):
        return [*_errors([_plain(error.format_message())]), *_usage(error)], INPUT
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return ["interrupted"], INTERRUPTED
    known = _ours(error)
    if known is not None:
        return known
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _out_of_memory(error), ENVIRONMENT
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EMFILE,
        errno.EACCES,
    ):
        where = f"{error.filename}: " if error.filename else ""
        return _errors(
            [f"{where}{error.strerror}; fix this and try again"]
        ), ENVIRONMENT
    text = f"internal error (a bug in mgk): {type(error).__name__}: {error}"
    return [
        *_errors([text]),
        "run the command again with --debug and report the output",
    ], ENVIRONMENT


def _ours(error: BaseException) -> tuple[list[str], int] | None:
    """Describe an `MgkError`; None for any other error. Its module may not be imported yet."""
    if "mgk_core.contract.errors" not in sys.modules:
        return None
    from mgk_core.contract.errors import ConfigError, DataError, Interrupted, MgkError

    if not isinstance(error, MgkError):
        return None
    if isinstance(error, (ConfigError, DataError)):
        lines = _errors([str(p) for p in error.problems])
        return [
            *lines,
            f"{several(len(lines), 'error')}; nothing was run",
        ], error.exit_code
    text = clean(error, lines=True).split("\n")
    first = text[0] if isinstance(error, Interrupted) else f"error: {text[0]}"
    notes = [clean(n) for n in getattr(error, "__notes__", ())]
    return [first, *text[1:], *notes], error.exit_code


def _errors(messages: list[str]) -> list[str]:
    return [f"error: {clean(m)}" for m in messages if m]


def _plain(message: str) -> str:
    """Rewrite click's sentence in mgk's style: lower case, no full stop."""
    text = (
        message.replace("\n", " ")
        .strip()
        .removesuffix(".")
        .replace(". Did you mean", "; did you mean")
    )
    return text[:1].lower() + text[1:]


def _usage(error: click.ClickException) -> list[str]:
    """Return a pointer to the command's help."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    return [f"see '{ctx.command_path} --help'"] if ctx is not None else []


def _out_of_memory(error: BaseException) -> list[str]:
    reason = clean(str(error).split("\n")[0]) or "the system has no more memory"
    fix = (
        "lower train.micro_batch (the effective batch size stays the same), the examples' length or"
        " the adapter's rank; run.undo=disk keeps the old weights of a merge out of memory"
    )
    return [f"error: out of memory: {reason}", fix]
