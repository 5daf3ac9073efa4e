"""A results folder: one JSON file a cell, so that a table is resumed, spread over processes and extended.

``FOLDER/SUITE/ORDER/METHOD-seedN.json`` holds the cell, its settings, their digest, versions and figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs
import cattrs
import torch
from attrs import frozen

from mgk_bench.cell import Cell
from mgk_bench.figures import figures
from mgk_bench.folder import SuiteFolder
from mgk_bench.methods import Method
from mgk_bench.table import environment, settings_digest
from mgk_bench.text_cell import Settings, run_text_cell
from mgk_core.contract.errors import InputError


@frozen(eq=False)
class Job:
    """One cell to run, with the file that it goes to."""

    folder: SuiteFolder
    order: str
    settings: Settings
    method: Method
    seed: int
    path: Path

    @property
    def settings_table(self) -> dict[str, Any]:
        """All that shapes the cell, as JSON."""
        tasks = self.folder.order(self.order)[1]
        table = {
            "suite": self.folder.name,
            "tasks": tasks,
            "settings": attrs.asdict(self.settings),
            "method": attrs.asdict(self.method),
            "seed": self.seed,
        }
        plain: dict[str, Any] = json.loads(json.dumps(table))
        return plain


def jobs_of(
    results: Path,
    folder: SuiteFolder,
    order: str,
    settings: Settings,
    methods: Sequence[Method],
    seeds: Sequence[int],
) -> list[Job]:
    """Return a job per method and seed, seed by seed."""
    where = results / folder.name / order
    return [
        Job(folder, order, settings, m, seed, where / f"{m.name}-seed{seed}.json")
        for seed in seeds
        for m in methods
    ]


def read_cell(job: Job) -> Cell | None:
    """Return a job's cell if it was run before; None otherwise.

    :raises InputError: the file is of other settings, or damaged
    """
    if not job.path.exists():
        return None
    try:
        table = json.loads(job.path.read_text(encoding="utf-8"))
        cell = cattrs.structure(table["cell"], Cell)
        before = table["configuration"]
    except (ValueError, KeyError, TypeError, cattrs.BaseValidationError) as error:
        raise InputError(
            f"{job.path}: is damaged ({type(error).__name__}); remove it"
        ) from None
    wanted = job.settings_table
    if changed := sorted(_changed(before, wanted)):
        raise InputError(
            f"{job.path}: was run with other settings ({', '.join(changed)}); use another --results folder"
        )
    return cell


def _changed(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of which the values differ."""
    for key in {*before, *now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from (f"{key}.{name}" for name in _changed(old, new))
        elif old != new:
            yield key


def write_cell(job: Job, cell: Cell) -> None:
    """Write a cell whole or not at all."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    settings = job.settings_table
    table = {
        "cell": attrs.asdict(cell),
        "figures": attrs.asdict(figures(cell)),
        "configuration": settings,
        "digest": settings_digest(settings),
        "versions": environment(),
    }
    temporary = job.path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(
        json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    temporary.replace(job.path)


_phases: Any = None
"""In a worker process: the queue that counts its phases."""


def _begin_worker(queue: Any, threads: int) -> None:
    global _phases  # noqa: PLW0603 - a pool's initializer has no other way
    _phases = queue
    torch.set_num_threads(threads)


def _run(job: Job) -> None:
    """Run a cell, unless another process has finished it in the meantime."""
    if read_cell(job) is None:
        cell = run_text_cell(
            job.folder, job.order, job.settings, job.method, job.seed, _count
        )
        write_cell(job, cell)


def _count() -> None:
    if _phases is not None:
        _phases.put(1)


def phases_of(job: Job) -> int:
    """Return how many phases a cell has."""
    return 1 if job.method.joint else len(job.folder.order(job.order)[1])


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    advance: Callable[[int], None],
    done: Callable[[Job], None],
) -> list[Cell]:
    """Run what is missing, each cell in a process of its own, and return all cells in order.

    :param advance: called with the number of phases that have ended since it was last called
    :param done: called for each cell that has ended
    """
    missing = [job for job in jobs if read_cell(job) is None]
    if missing:
        # torch's own count, so that OMP_NUM_THREADS and the process's CPUs limit the workers too
        threads = max(1, torch.get_num_threads() // workers)
        # spawn: a forked child would share torch's threads; one cell a process: its memory is its own
        context = get_context("spawn")
        queue = context.Queue()
        with ProcessPoolExecutor(
            workers, context, _begin_worker, (queue, threads), max_tasks_per_child=1
        ) as pool:
            running = {pool.submit(_run, job): job for job in missing}
            try:
                while running:
                    ended, _ = wait(running, timeout=0.5)
                    ended = {f for f in running if f.done()}
                    while not queue.empty():
                        advance(queue.get())
                    for future in ended:
                        job = running.pop(future)
                        future.result()
                        done(job)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    found = [read_cell(job) for job in jobs]
    return [cell for cell in found if cell is not None]
