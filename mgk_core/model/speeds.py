"""What this machine computes fastest: measured once, and kept by its CPU and its torch.

A measurement is the best of several short ones, in CPU time where one thread computes, so that other work
on the machine changes it little.
What follows from one is fixed when a run starts and recorded with it: a machine that measures
something else later resumes the run as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.cache import cache_directory, keep

FORMAT = 1

WIDTHS = (512, 1024)
"""Widths of square weights at which threads are tried."""

ALWAYS = 2048
"""Width from which all threads are used untried: one product there takes milliseconds."""

PAYS = 0.8
"""Share of one thread's time that all of them must stay below: threads that wait for each other cost more on a busy machine."""

ASSUMED = 1024**2
"""Entries from which threads are used while the machine is too busy to measure; not kept."""

BESIDE = 0.5
"""CPUs that must have been idle on average over the last minute for a measurement of several threads."""

POSITIONS = 128
"""Rows of a product: the tokens of a small batch."""

Figures = Mapping[str, float]


def threads_for(model: nn.Module) -> int:
    """Return how many of the threads that torch has a base needs: all, or one where its products are small.

    Small is what has no matrix of at least `threads_from` entries. Threads of a pool spin while
    they wait for each other: on a busy two-core machine a step of such a base takes many times as long on two.
    """
    count = torch.get_num_threads()
    if count == 1:
        return 1
    largest = max(
        (t.numel() for t in base_state_dict(model).values() if t.dim() > 1), default=0
    )
    return count if largest >= threads_from(count) else 1


def threads_from(count: int) -> int:
    """Return from how many entries of a weight ``count`` threads pay on this machine."""
    smallest, always = min(WIDTHS) ** 2, ALWAYS**2
    found = measured(f"threads-{count}", lambda: _try_threads(count))
    return min(max(int(found.get("entries", ASSUMED)), smallest), always)


def _try_threads(count: int) -> Figures:
    """Return the first width at which threads pay; nothing while other work takes a CPU."""
    if os.getloadavg()[0] > count - BESIDE:
        return {}
    for width in WIDTHS:
        x, w = torch.randn(POSITIONS, width), torch.randn(width, width)
        times = {}
        for threads in (1, count):
            with using(threads):
                times[threads] = _fastest(lambda x=x, w=w: x @ w, time.perf_counter)  # type: ignore[misc]
        if times[count] < PAYS * times[1]:
            return {"entries": float(width**2)}
    return {"entries": float(ALWAYS**2)}


@contextmanager
def using(threads: int) -> Iterator[None]:
    """Compute the block with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the CPU seconds of one thread's fastest of several calls, after one that is not counted."""
    return _fastest(work, time.thread_time, repeats)


def _fastest(
    work: Callable[[], object], clock: Callable[[], float], repeats: int = 20
) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return max(min(times), 1e-9)


def measured(name: str, measure: Callable[[], Figures]) -> Figures:
    """Return figures by a name: those that are kept for this CPU and torch, or measured now and kept.

    A file that cannot be read is measured again; a cache that cannot be written only costs that time.
    No figures: they could not be measured now, and are not kept.
    """
    path = _path(name)
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
        kept = json.loads(path.read_bytes())
        if kept["format"] == FORMAT:
            return {str(k): float(v) for k, v in kept["figures"].items()}
    found = dict(measure())
    if found:
        keep(path, json.dumps({"format": FORMAT, "figures": found}))
    return found


def has(name: str) -> bool:
    """Whether figures are kept by a name."""
    return _path(name).is_file()


def _path(name: str) -> Path:
    return cache_directory() / "speeds" / machine() / f"{name}.json"


def machine() -> str:
    """Return a name of this CPU and torch: what decides how fast a product is."""
    facts = (
        _cpu_model(),
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        torch.__version__,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def _cpu_model() -> str:
    """Return the CPU's model and features; a virtual machine may give many CPUs one name."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        wanted = [
            ln for ln in lines if ln.startswith(("model name", "flags", "Features"))
        ]
        return "\n".join(sorted(set(wanted)))
    return platform.processor() or platform.machine()


__all__ = ["fastest", "measured", "using"]
