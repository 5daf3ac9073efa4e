"""``mgk launch``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mgk_cli.lazy import Command

KINDS = ("slurm", "skypilot", "k8s", "ray")
NEEDS = {"k8s": ("image", "claim"), "skypilot": ("gpu",)}


@click.command(
    "launch",
    cls=Command,
    short_help="Write a job file that runs a pipeline on a cluster.",
    epilog="Example: mgk launch slurm --nodes 2 --nproc 8 --write job.sh -- korean-medical --out /shared/runs/first",
)
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("run", nargs=-1, type=click.UNPROCESSED, metavar="-- PIPELINE ...")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Processes of each node, one per GPU.  [default: 1]",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Nodes; not for ray.  [default: 1]",
)
@click.option(
    "--time",
    type=click.IntRange(min=2),
    metavar="MINUTES",
    help="Time limit of a slurm job; the run stops before it and is queued again.  [default: 240]",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="Restarts after a failure; not for slurm.  [default: 3]",
)
@click.option(
    "--name", default="mgk", metavar="NAME", help="Name of the job.  [default: mgk]"
)
@click.option("--image", metavar="IMAGE", help="Container with mgk, for k8s.")
@click.option(
    "--claim", metavar="CLAIM", help="PersistentVolumeClaim, mounted at /runs, for k8s."
)
@click.option("--gpu", metavar="TYPE", help="Kind of GPU, e.g. H100, for skypilot.")
@click.option(
    "--write",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="New file.  [default: print it]",
)
def command(
    *, kind: str, run: tuple[str, ...], nproc: int, name: str, write: Path | None, nodes: int | None, time: int | None,
    retries: int | None, image: str | None, claim: str | None, gpu: str | None,
) -> None:  # fmt: skip
    """Write a job file of KIND (slurm, skypilot, k8s, ray) that runs a pipeline; submitting it is yours.

    What comes after -- are the arguments of 'mgk run'. --out has to be on a file system that all
    nodes and all restarts see: the job resumes the run that it finds there.
    """
    import attrs

    from mgk_cli.jobs import KINDS as WRITERS
    from mgk_cli.jobs import Job, misplaced

    given: dict[str, Any] = {"nodes": nodes, "time": time, "retries": retries}
    given |= {"image": image, "claim": claim, "gpu": gpu}
    for option in misplaced(kind, given):
        raise click.UsageError(
            f"--{option} is not an option of {kind} jobs: leave it out"
        )
    for option in NEEDS.get(kind, ()):
        if not given[option]:
            raise click.UsageError(f"--{option} is missing: {kind} jobs need it")
    _check(run)
    job = Job(name, run, nproc=nproc)
    text = WRITERS[kind](
        attrs.evolve(job, **{k: v for k, v in given.items() if v is not None})
    )
    if write is None:
        click.echo(text, nl=False)
        return
    try:
        with write.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.UsageError(
            f"--write {write}: exists; choose another file"
        ) from None
    click.echo(str(write))


def _check(run: tuple[str, ...]) -> None:
    """Refuse arguments that 'mgk run' would refuse, and those that the job file sets itself."""
    from mgk_cli.commands import run as command_run

    found = command_run.command.make_context(
        "run", list(run), parent=click.get_current_context().find_root()
    ).params
    if found["out"] is None:
        raise click.UsageError(
            "--out is missing after --: a job that is started again has to find its run directory"
        )
    for option, value in {
        "--nproc": found["nproc"] > 1,
        "--minutes": found["minutes"],
    }.items():
        if value:
            raise click.UsageError(
                f"{option} after --: the job file sets it; use the options of 'mgk launch'"
            )
