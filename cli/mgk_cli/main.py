"""The entry of the command line: parses, runs one command, and turns errors into words and exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

import click

from mgk_cli import console, errors
from mgk_cli.lazy import LazyGroup, debug_option

COMMANDS = {
    "run": "Run a pipeline.",
    "resume": "Go on with a run where it was.",
    "phase": "Run one phase from its saved predecessor.",
    "plan": "Say what a run would do; run nothing.",
    "show": "Show one run, or several side by side.",
    "verify": "Check every file of a run against its ledger.",
    "rebuild": "Build a run's model again, up to or without a phase.",
    "export": "Write a run's phases as one adapter.",
    "ask": "Ask a run's model, base and final side by side.",
    "chat": "Talk with a run's model.",
    "config": "Show the resolved configuration and its sources.",
    "pipelines": "List the installed pipelines.",
    "plugins": "List the installed plugins and their hooks.",
    "doctor": "Check this machine and this installation.",
    "new-plugin": "Write a new plugin as a complete distribution.",
    "check-plugin": "Hold a plugin to the laws of its kind.",
}


@click.group(
    cls=LazyGroup,
    own=COMMANDS,
    package="mgk_cli.commands",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: mgk run textmodel",
)
@click.version_option(package_name="mgk", message="mgk %(version)s")
def cli() -> None:
    """Take a language model through phases of training, and know what each phase gained and cost.

    Exit codes: 0 done, 1 a gate refused, 2 bad input, 3 environment, 130 interrupted (resumable).
    """


cli.params.append(debug_option())


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run the command line once; return its exit code. Nothing is raised."""
    console.tolerate_foreign_text()
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(args, prog_name="mgk", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return errors.INPUT
    except BaseException as error:  # noqa: BLE001 - the last place that can turn an error into words
        return errors.report(error, debug="--debug" in args)
    finally:
        with console.pipe_may_close():
            pass


def main() -> None:
    """Be the console script ``mgk``."""
    code = invoke()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # all is said; in Python's own exit Ctrl-C would print a traceback
    sys.exit(code)
