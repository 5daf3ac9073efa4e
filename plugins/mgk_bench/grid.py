"""All cells of the table: suites × methods × seeds, over processes of one thread each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import attrs

from mgk_bench.cell import Cell
from mgk_bench.loop import base_of, run_cell
from mgk_bench.methods import METHODS, Method, chosen
from mgk_bench.output import write_all
from mgk_bench.table import Line, as_json_lines, lines
from mgk_bench.tasks import Suite

J = TypeVar("J")
R = TypeVar("R")
Job = tuple[str, int, tuple[Method, ...]]
"""(suite, seed, methods): one base serves all methods of a job."""


def suite_of(name: str, seed: int) -> Suite:
    """Make a suite by name."""
    from mgk_bench import characters, digits

    return characters.suite(seed) if name == "characters" else digits.suite(name, seed)


def run_job(job: Job) -> list[Cell]:
    """Train the base once and take it through every method. Runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    name, seed, methods = job
    suite = suite_of(name, seed)
    base = base_of(suite, seed)
    # What is imported and made at first use must not count for the first method.
    run_cell(_tiny(suite), METHODS[0], seed, base)
    return [run_cell(suite, method, seed, base) for method in methods]


def _tiny(suite: Suite) -> Suite:
    """One phase of one step."""
    recipe = attrs.evolve(suite.settings["recipe"], epochs=1e-6)
    return attrs.evolve(
        suite, tasks=suite.tasks[:2], settings=suite.settings | {"recipe": recipe}
    )


def run_grid(
    suites: Sequence[str],
    methods: Sequence[str],
    seeds: range,
    workers: int | None,
    tell: Callable[[str], None],
) -> tuple[list[Cell], list[Line]]:
    """Run everything; cells come back in the order of the table, whatever finished first."""
    wanted = tuple(chosen(tuple(methods)))
    jobs: list[Job] = [(name, seed, wanted) for seed in seeds for name in suites]
    began, found = time.perf_counter(), {}
    for job, cells in unordered(run_job, jobs, workers or os.cpu_count() or 1):
        found[job[:2]] = cells
        tell(
            f"{job[0]}, seed {job[1]}: {len(cells)} methods; {len(found)} of {len(jobs)} done, {time.perf_counter() - began:.0f} s"
        )
    ordered = [
        c
        for name in suites
        for m in wanted
        for seed in seeds
        for c in found[name, seed]
        if c.method == m.name
    ]
    return ordered, lines(ordered)


def unordered(
    run: Callable[[J], R], jobs: Sequence[J], workers: int
) -> Iterator[tuple[J, R]]:
    """Yield each job with its result as soon as it is there. run: importable, since processes are new ones."""
    if workers == 1 or len(jobs) == 1:
        yield from ((job, run(job)) for job in jobs)
        return
    # spawn: a forked child would share torch's thread pool with its parent
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()


def records(cells: Sequence[Cell], suites: Sequence[str]) -> list[str]:
    """Return one JSON line for each cell, with versions and the hash of what configured it."""
    settings = {
        "methods": [attrs.asdict(m) for m in METHODS],
        "suites": {n: suite_of(n, 0).settings for n in suites},
    }
    return as_json_lines(cells, settings)


def write(
    out: Path, cells: Sequence[Cell], found: Sequence[Line], suites: Sequence[str]
) -> list[Path]:
    """Write the table in each format, cells.jsonl and, where matplotlib is installed, picture.svg."""
    return write_all(out, found, "\n".join(records(cells, suites)))
