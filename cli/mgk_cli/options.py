"""Options shared by several commands."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

TOKENS = click.option(
    "--tokens",
    type=click.IntRange(1, 8192),
    default=128,
    metavar="N",
    help="Maximum tokens per answer.  [default: 128]",
)

RUN = click.argument("run", type=click.Path(path_type=Path))


def _pipelines(
    _ctx: click.Context, _parameter: click.Parameter, typed: str
) -> list[str]:
    """Complete the name of an installed pipeline, without importing any."""
    names = {p.name for p in importlib.metadata.entry_points(group="mgk.pipelines")}
    return sorted(name for name in names if name.startswith(typed))


PIPELINE = click.argument("pipeline", required=False, shell_complete=_pipelines)


def config_options(function: F) -> F:
    """``--config`` and ``--set``: what overrides the pipeline."""
    return _apply(
        function,
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file that overrides the pipeline.",
        ),
        set_option,
    )


def set_option(function: F) -> F:
    """``--set KEY=VALUE``, any number of times."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one value, e.g. phases.mcq.optimizer.lr=1e-4. May be repeated.",
    )(function)


def machine_options(function: F) -> F:
    """``--device`` and ``--seed``."""
    return _apply(
        function,
        click.option(
            "--device",
            metavar="NAME",
            help="auto, cpu, cuda, cuda:N or mps.  [default: auto]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            metavar="N",
            help="Random seed.  [default: 0]",
        ),
    )


def _a_number(
    _ctx: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("expected a number")
    return value


def limit_options(function: F) -> F:
    """``--minutes`` and ``--auto-batch``: limits on time and memory."""
    return _apply(
        function,
        click.option(
            "--minutes",
            type=click.FloatRange(min=0, min_open=True),
            callback=_a_number,
            metavar="N",
            help="Checkpoint and exit after N minutes, e.g. ahead of a scheduler's time limit;"
            " 'mgk resume' continues.",
        ),
        click.option(
            "--auto-batch",
            is_flag=True,
            help="If a step runs out of memory, halve the micro-batch and continue;"
            " the effective batch size stays the same.",
        ),
    )


def nproc_option(function: F) -> F:
    """``--nproc N``: how many processes of this machine work on the run."""
    return click.option(
        "--nproc",
        type=click.IntRange(min=1),
        default=1,
        metavar="N",
        help="Work in N processes, one per GPU where there are any; the result has the same bits."
        "  [default: 1]",
    )(function)


def base_option(function: F) -> F:
    """``--base DIR``: where a run's base is now."""
    return click.option(
        "--base",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where the run's base model is now, if it was moved; checked by its digest.",
    )(function)


def without_option(function: F) -> F:
    """``--without-plugin NAME`` and ``--plugin DIR``, any number of times each."""
    return _apply(
        function,
        click.option(
            "--without-plugin",
            "without",
            multiple=True,
            metavar="NAME",
            help="Run without this plugin. May be repeated.",
        ),
        plugin_option,
    )


def plugin_option(function: F) -> F:
    """``--plugin DIR``: a plugin that is being written, loaded without being installed."""
    return click.option(
        "--plugin",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Load the plugin in a directory without installing it. May be repeated.",
        expose_value=False,
        is_eager=True,
        callback=_load_directories,
    )(function)


def _load_directories(
    _ctx: click.Context, _option: click.Parameter, directories: tuple[Path, ...]
) -> None:
    from mgk_core.config.local_plugins import add_directory

    for directory in directories:
        add_directory(directory)


def output_options(function: F) -> F:
    """``--quiet`` and ``--json``: what a run prints."""
    return _apply(
        function,
        click.option(
            "--quiet",
            "-q",
            is_flag=True,
            help="Print only the result line and the path of the run.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print one JSON object per line and nothing else.",
        ),
    )


def json_option(function: F) -> F:
    """``--json`` for commands that print a result."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON, one object per line, and nothing else.",
    )(function)


def _apply(function: F, *decorators: Callable[[F], F]) -> F:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function
