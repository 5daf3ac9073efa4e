"""The commands ``mgk report`` and ``mgk watch``."""

from __future__ import annotations

from pathlib import Path

import click

DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.command(epilog="Example: mgk report runs/textmodel-1")
@click.argument("runs", nargs=-1, required=True, type=DIRECTORY)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write; default: report.html in the run directory.",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report of one run, or of several side by side.

    One file that needs no network: the retention matrix, curves, gates, per-item changes,
    configuration and ledger. The run is read only; it may still be going on.
    """
    from mgk_core.contract.errors import InputError
    from mgk_report.page import NAME, write

    if out is None and len(runs) > 1:
        raise InputError("--out: several runs need a file to be written to")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no directory {out.parent}")
    click.echo(write(runs, out or runs[0] / NAME))


@click.command(epilog="Example: mgk watch runs/textmodel-1")
@click.argument("runs", nargs=-1, required=True, type=DIRECTORY)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True)
def watch(runs: tuple[Path, ...], port: int) -> None:
    """Serve the report of RUNS on this machine during the runs; the page follows by itself.

    Reads files only, so the run may be another process's, or another machine's on a shared disk.
    Ctrl-C ends it.
    """
    from mgk_report.server import serve

    with serve(runs, port) as server:
        click.echo(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C to stop)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo()
