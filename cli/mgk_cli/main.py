"""Entry point of the command line: runs one command; errors become messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

from mgk_cli import console, errors
from mgk_cli.lazy import LazyGroup, debug_option

COMMANDS = {
    "init": "Write a configuration from five answers, and show its plan.",
    "run": "Run a pipeline.",
    "resume": "Resume an interrupted run.",
    "phase": "Run a single phase, starting from the saved phase before it.",
    "plan": "Dry run: show steps, memory and disk without training.",
    "launch": "Write a job file that runs a pipeline on a cluster.",
    "lr-find": "Find a learning rate: train a throw-away adapter at rising rates.",
    "show": "Show a run, or compare several.",
    "verify": "Check every file of a run against its ledger.",
    "rebuild": "Rebuild the model of a run up to a phase, or without one.",
    "export": "Export the model of a run: whole, as one adapter, or as GGUF.",
    "ask": "Ask the base and the final model of a run the same question.",
    "chat": "Chat with the model of a run.",
    "config": "Print the resolved configuration and where each value comes from.",
    "pipelines": "List the installed pipelines and phases.",
    "plugins": "List the installed plugins and their hooks.",
    "doctor": "Check this machine and the installation.",
    "agent-docs": "Print what a coding assistant needs to use mgk.",
    "new-plugin": "Create a new plugin as a complete Python package.",
    "install": "Install a plugin with pip.",
    "uninstall": "Remove a plugin with pip.",
    "check-plugin": "Run the conformance tests on a plugin.",
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
    """Train a language model in phases and measure what each phase gained and what it cost.

    Exit codes: 0 success, 1 refused by a gate, 2 bad input, 3 environment, 130 interrupted (resumable).
    """


cli.params.append(debug_option())


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises."""
    console.tolerate_foreign_text()
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(args, prog_name="mgk", standalone_mode=False, obj=args)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return errors.INPUT
    except SystemExit as error:
        if "_MGK_COMPLETE" not in os.environ:
            return errors.report(error, debug="--debug" in args)
        return int(error.code or 0)  # the shell's completion ends so
    except BaseException as error:  # noqa: BLE001 - last chance to turn an error into a message
        return errors.report(error, debug="--debug" in args)
    finally:
        with console.pipe_may_close():
            pass


def main() -> None:
    """Run the console script ``mgk``."""
    code = invoke()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # everything is printed; from here on Ctrl-C would only print a traceback
    sys.exit(code)
