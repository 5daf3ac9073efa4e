"""What every view of a run needs: its state, base, machine and seed as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt

if TYPE_CHECKING:
    from mgk_core.tools.run_summary import RunSummary

STATES = {
    "committed": ("merged", "green"),
    "kept_apart": ("not merged", "yellow"),
    "rolled_back": ("rolled back", "bold red"),
    "begun": ("started", "yellow"),
    "waiting": ("pending", "dim"),
}
STATUS = {
    "finished": ("finished", "green"),
    "stopped": ("stopped between phases", "yellow"),
    "unfinished": ("interrupted", "yellow"),
    "refused": ("refused by a gate", "bold red"),
    "running": ("running", "cyan"),
}


def base_of(run: RunSummary) -> str:
    """Return the name of the base."""
    base = run.config.get("base", {})
    return fmt.clean(base.get("id") or base.get("path") or base.get("type", "?"))


def machine_of(run: RunSummary) -> str:
    """Return device and threads."""
    if run.ledger is None:
        return fmt.clean(run.config.get("run", {}).get("device", "?"))
    environment = run.ledger.environment
    threads = fmt.several(environment.get("threads", 0), "thread")
    return f"{fmt.clean(environment.get('device', '?'))}, {threads}"


def seed_of(run: RunSummary) -> str:
    """Return the run's seed."""
    return str(run.config.get("run", {}).get("seed", "?"))
