"""``--nproc``: starting the processes of a run, and what each of them prints."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mgk_cli.errors import ENVIRONMENT, INTERRUPTED
from mgk_core.contract.world import place

GRACE = 600
"""Seconds that the processes have to write a checkpoint after a signal, before they are killed."""


def silent() -> bool:
    """Return whether another process of this run talks to the user."""
    return place().rank != 0


def start(ctx: click.Context, count: int, *, out: Path | None = None) -> None:
    """Run this command line in ``count`` processes of this machine, and exit as their leader does.

    out: the run directory, where the command line names none.
    """
    if place().size > 1:
        raise click.UsageError(
            "--nproc is for one process that starts the others; a launcher has started several already: leave it out"
        )
    arguments = without_nproc(ctx.find_root().obj or sys.argv[1:])
    if out is not None:
        arguments += ["--out", str(out)]
    ctx.exit(launch(count, ["-m", "mgk_cli", *arguments]))


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """Return a command line without ``--nproc N``."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--nproc":
            next(rest, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def launch(count: int, arguments: Sequence[str]) -> int:
    """Start Python ``count`` times with torchrun's agent; return the exit code of the whole.

    Each process has one CPU thread, as with torchrun, unless OMP_NUM_THREADS or run.threads asks for more.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _be_quiet()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=GRACE,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return _code(error.failures)
    except SignalException:
        return INTERRUPTED
    return 0


def _code(failures: Mapping[int, Any]) -> int:
    """Return the leader's exit code, where it has one of its own; else that a process has gone."""
    codes = [failures[rank].exitcode for rank in sorted(failures)]
    return next((code for code in codes if code > 0), ENVIRONMENT)


def _be_quiet() -> None:
    """Keep torchrun's agent from reporting what the leader has explained already."""
    import logging

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
