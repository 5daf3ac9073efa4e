"""A phase's memory in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_cli import words

if TYPE_CHECKING:
    from mgk_core.inspect import PhaseLook, RunLook


def memory_of(run: RunLook, phase: PhaseLook) -> str:
    """Return a phase's peak: allocated and reserved on CUDA, else the process's so far."""
    noted = run.journal.last("phase_exit", phase=phase.name)
    found = dict(phase.training.memory)
    for key, value in (noted.get("memory", {}) if noted else {}).items():
        found[key] = max(found.get(key, 0), int(value))
    if "cuda_peak" in found:
        return f"{words.size(found['cuda_peak'])} ({words.size(found.get('cuda_reserved'))} reserved)"
    return words.size(found["rss_peak"]) if "rss_peak" in found else ""
