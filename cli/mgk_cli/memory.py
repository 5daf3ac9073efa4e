"""A phase's memory in fmt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_cli import formatting as fmt

if TYPE_CHECKING:
    from mgk_core.tools.run_summary import PhaseSummary, RunSummary


def memory_of(run: RunSummary, phase: PhaseSummary) -> str:
    """Return a phase's peak: allocated and reserved on CUDA, else that of the process so far."""
    return _formatted(_largest(run, phase))


def peak_of(run: RunSummary) -> str:
    """Return the largest phase's peak."""
    found: dict[str, int] = {}
    for phase in run.phases:
        for key, value in _largest(run, phase).items():
            found[key] = max(found.get(key, 0), value)
    return _formatted(found) or "–"


def _largest(run: RunSummary, phase: PhaseSummary) -> dict[str, int]:
    exit_event = run.journal.last("phase_exit", phase=phase.name)
    found = dict(phase.training.memory)
    for key, value in (exit_event.get("memory", {}) if exit_event else {}).items():
        found[key] = max(found.get(key, 0), int(value))
    return found


def _formatted(found: dict[str, int]) -> str:
    if "cuda_peak" in found:
        return f"{fmt.size(found['cuda_peak'])} ({fmt.size(found.get('cuda_reserved'))} reserved)"
    return fmt.size(found["rss_peak"]) if "rss_peak" in found else ""
