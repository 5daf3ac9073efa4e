"""``mgk resume``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command


@click.command(
    "resume",
    cls=Command,
    short_help="Resume an interrupted run.",
    epilog="Example: mgk resume runs/textmodel-1",
)
@options.RUN
@click.option("--until", metavar="PHASE", help="Stop after this phase.")
@click.option(
    "--accept-change",
    "accept",
    multiple=True,
    metavar="KEY",
    help="Resume although this input has changed, and record the change. May be repeated.",
)
@options.nproc_option
@options.limit_options
@options.base_option
@options.without_option
@options.output_options
def command(
    *, run: Path, until: str | None, accept: tuple[str, ...], nproc: int, minutes: float | None, auto_batch: bool,
    base: Path | None, without: tuple[str, ...], quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Resume RUN where it stopped; the result is the same as if it had never been interrupted.

    Configuration, data, tokenizer, base, plugin code, libraries and thread count must not have
    changed; each change is reported with both values.
    """
    if nproc > 1:
        from mgk_cli import processes

        processes.start(click.get_current_context(), nproc)
    from mgk_cli.running import work
    from mgk_core.run.runner import resume_run

    work(
        lambda sink: resume_run(
            run, until=until, accept=accept, without=without, base=base, minutes=minutes,
            auto_batch=auto_batch, sink=sink,
        ),
        run, quiet=quiet, as_json=as_json,
    )  # fmt: skip
