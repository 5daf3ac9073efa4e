"""Doing a run's work with progress told, and saying at the end what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgk_cli import progress
from mgk_cli.console import show

if TYPE_CHECKING:
    from mgk_core.record.events import Sink
    from mgk_core.run.runner import RunResult


def work(run: Callable[[Sink], RunResult], directory: Path, *, quiet: bool, as_json: bool) -> None:
    """Follow a run to its end, then report from what it wrote.

    :raises Interrupted: also for a second Ctrl-C, with how to go on
    """
    from mgk_core.contract.errors import GateRefused, Interrupted, MgkError

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
            report(directory)
        raise
    if as_json:
        progress.json_line(as_event(result))
    else:
        report(result.directory)


def _stopped(directory: Path) -> str:
    if (directory / "journal.jsonl").exists():
        return f"stopped at once; what was checkpointed is kept. Go on with: mgk resume {directory}"
    return "stopped; nothing was written"


def as_event(result: RunResult) -> Mapping[str, Any]:
    """Return the last line of ``--json``."""
    model = result.directory / "model"
    return {
        "event": "result",
        "run": str(result.directory),
        "finished": result.finished,
        "model": str(model) if result.finished and model.is_dir() else None,
        "weights": result.ledger.head,
        "phases": [
            {"phase": p.phase, "result": p.result, "merged": p.merged} for p in result.ledger.phases
        ],
        "retention": result.retention,
        "times": result.times,
    }


def report(directory: Path) -> None:
    """Draw what stands in the run directory."""
    from mgk_cli.run_view import summary
    from mgk_core.tools.run_summary import look

    show(*summary(look(directory)))
