"""``mgk run``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command
from mgk_core.contract.world import place

DEFAULT = "korean-medical"


@click.command(
    "run",
    cls=Command,
    short_help="Run a pipeline.",
    epilog="Example: mgk run textmodel --out runs/first --set phases.mcq.optimizer.lr=1e-4",
)
@options.PIPELINE
@options.config_options
@click.option(
    "--until", metavar="PHASE", help="Stop after this phase; 'mgk resume' continues."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New run directory.  [default: runs/PIPELINE-N]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run in --out if there is one, as a job that is restarted does.",
)
@options.machine_options
@options.nproc_option
@options.limit_options
@options.without_option
@options.output_options
def command(
    *, pipeline: str | None, config: Path | None, overrides: tuple[str, ...], until: str | None, out: Path | None,
    resume: bool, device: str | None, seed: int | None, nproc: int, minutes: float | None, auto_batch: bool, without: tuple[str, ...], quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Run PIPELINE (default: korean-medical) into a new run directory.

    PIPELINE is the name of an installed pipeline, or a TOML file.

    Each phase trains an adapter on the frozen base, merges it, scores every probe (evaluation set),
    and keeps the merge only if all gates (acceptance tests) pass. The run ends with a summary of
    what each phase gained and what it cost the others.
    """
    from mgk_cli import processes

    named = pipeline if pipeline is not None or config is not None else DEFAULT
    if out is None and (resume or place().size > 1):
        raise click.UsageError(
            "--out is missing: with --resume, and with a launcher that starts several processes, the run"
            " directory has to be named"
        )
    target = out or free_name(Path(named or config or "run").name.removesuffix(".toml"))
    if nproc > 1:
        ctx = click.get_current_context()
        processes.start(ctx, nproc, out=None if out else target)
    from mgk_cli.running import work
    from mgk_core.run.runner import run_pipeline

    flags = {"device": device, "seed": seed, "auto_batch": auto_batch or None}
    work(
        lambda sink: run_pipeline(
            named, out=target, config=config, overrides=overrides, flags=flags, until=until, without=without,
            minutes=minutes, sink=sink, resume=resume,
        ),
        target, quiet=quiet, as_json=as_json,
    )  # fmt: skip


def free_name(name: str, root: Path = Path("runs")) -> Path:
    """Return ``runs/NAME-N`` with the first N that is not taken."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"
