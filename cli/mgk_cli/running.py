"""Runs a pipeline with progress, and prints the outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgk_cli import processes, progress
from mgk_cli.console import line, make, show

if TYPE_CHECKING:
    from mgk_core.record.events import Sink
    from mgk_core.run.runner import RunResult


def work(
    run: Callable[[Sink], RunResult], directory: Path, *, quiet: bool, as_json: bool
) -> None:
    """Run with progress, then print the outcome from the run directory.

    :raises Interrupted: also for a second Ctrl-C, with the command that resumes
    """
    from mgk_core.contract.errors import GateRefused, Interrupted, MgkError

    if processes.silent():
        run(lambda _: None)
        return
    try:
        with progress.following(quiet=quiet, as_json=as_json) as sink:
            result = run(sink)
    except KeyboardInterrupt:
        raise Interrupted(_stopped(directory)) from None
    except MgkError as error:
        if as_json:
            progress.json_line(
                {"event": "error", "exit_code": error.exit_code, "message": str(error)}
            )
        elif isinstance(error, GateRefused):
            report(directory, quiet=quiet)
        raise
    if as_json:
        progress.json_line(as_event(result))
    else:
        report(result.directory, quiet=quiet)


def _stopped(directory: Path) -> str:
    if (directory / "journal.jsonl").exists():
        return (
            f"stopped at once; checkpoints are kept. To resume: mgk resume {directory}"
        )
    return "stopped; nothing was written"


def as_event(result: RunResult) -> Mapping[str, Any]:
    """Return the last line of ``--json`` output."""
    model = result.directory / "model"
    return {
        "event": "result",
        "run": str(result.directory),
        "finished": result.finished,
        "model": str(model) if result.finished and model.is_dir() else None,
        "weights": result.ledger.head,
        "phases": [
            {"phase": p.phase, "result": p.result, "merged": p.merged}
            for p in result.ledger.phases
        ],
        "retention": result.retention,
        "times": result.times,
    }


def report(directory: Path, *, quiet: bool) -> None:
    """Print the outcome of a run. quiet: the result line and the path of the run only."""
    from mgk_cli.outcome import headline, outcome
    from mgk_core.tools.run_summary import look

    run = look(directory)
    if quiet:
        line(headline(run).plain)
        line(str(directory))
    else:
        show(*outcome(run, make().width))
