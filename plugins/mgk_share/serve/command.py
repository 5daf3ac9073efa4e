"""The command ``mgk serve``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click


@click.command(epilog="Example: mgk serve runs/korean-medical-1")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8766, show_default=True)
@click.option(
    "--tokens",
    type=click.IntRange(1, 8192),
    default=256,
    show_default=True,
    help="Maximum tokens of an answer whose request names no number.",
)
@click.option("--final-only", is_flag=True, help="Without the base: half the memory.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run's base model is now, if it was moved; checked by its digest.",
)
def serve(
    *, run: Path, port: int, tokens: int, final_only: bool, base: Path | None
) -> None:
    """Serve the final model of RUN and its base on this machine, for trying them.

    OpenAI's protocol at /v1 (models final and base, with streaming), and a page with both side by
    side at /. For this machine only and for one user: use vLLM or llama.cpp for more. Ctrl-C ends it.
    """
    import socket

    from mgk_cli.console import line
    from mgk_cli.progress import waiting
    from mgk_core.contract.errors import EnvironmentFault, InputError

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            f"serve needs {' and '.join(missing)}: pip install 'mgk[serve]'"
        )
    import uvicorn

    from mgk_share.serve.app import make_app
    from mgk_share.serve.voices import open_voices

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"--port {port}: {error.strerror}; choose another, or 0 for any"
            ) from None
        with waiting("loading"):
            voices = open_voices(run, base=base, both=not final_only)
        line(f"http://127.0.0.1:{listening.getsockname()[1]}/  (Ctrl-C to stop)")
        app = make_app(voices, run.name, tokens)
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
