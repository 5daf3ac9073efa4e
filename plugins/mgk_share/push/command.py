"""The command ``mgk push``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mgk_share.push.parcel import Item


@click.command(
    epilog="Example: mgk push runs/korean-medical-1 me/korean-medical --private --dry-run"
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--adapter",
    is_flag=True,
    help="Send all phases as one PEFT adapter for the original base instead of the whole model.",
)
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option(
    "--dry-run", is_flag=True, help="List what would be sent, and send nothing."
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run's base model is now, if it was moved; for --adapter.",
)
def push(
    *,
    run: Path,
    repository: str,
    adapter: bool,
    private: bool,
    dry_run: bool,
    base: Path | None,
) -> None:
    """Send the model of RUN to the Hugging Face hub, with its card.

    What is sent is listed first: the files of RUN/model, or of 'mgk export --format peft'. Training
    data is never among them, and absolute paths of this machine are shortened to their last part.
    The token is that of 'hf auth login' or HF_TOKEN.
    """
    from mgk_cli.console import line
    from mgk_cli.progress import waiting
    from mgk_share.push import hub

    if base is not None and not adapter:
        raise click.UsageError("--base is for --adapter only")
    hub.require_library()
    hub.check_name(repository)
    if not dry_run:
        hub.token()  # before an hour of work, not after it
    with _parcel(run, adapter=adapter, base=base) as items:
        visible = (
            "private" if private else "public unless it exists already and is private"
        )
        line(f"{hub.address(repository)}: {visible}")
        for item in items:
            line(_listed(item))
        if dry_run:
            line("dry run; nothing was sent")
            return
        with waiting("uploading"):
            what = "adapter" if adapter else "model"
            url = hub.send(
                items,
                repository,
                private=private,
                message=f"Add the {what} of {run.name}",
            )
    line(f"sent: {url}")


@contextmanager
def _parcel(run: Path, *, adapter: bool, base: Path | None) -> Iterator[list[Item]]:
    from mgk_cli.progress import waiting
    from mgk_core.tools.export import export_adapter
    from mgk_share.push.parcel import model_parcel, pack

    if not adapter:
        yield model_parcel(run)
        return
    with tempfile.TemporaryDirectory(prefix="mgk-push-") as folder:
        out = Path(folder) / "adapter"
        with waiting("exporting"):
            export_adapter(run, out, base=base)
        yield pack(out, [p for p in out.rglob("*") if p.is_file()], run)


def _listed(item: Item) -> str:
    from mgk_cli.formatting import several, size

    text = f"  {item.name}  {size(item.size)}"
    if item.paths:
        text += f"  ({several(item.paths, 'path')} of this machine shortened)"
    return text
