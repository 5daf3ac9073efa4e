"""``mgk export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from mgk_core.tools.export import Exported


@click.command(
    "export",
    cls=Command,
    short_help="Export the model of a run: whole, as one adapter, or as GGUF.",
    epilog="Example: mgk export runs/korean-medical-1 --format gguf --type q8_0 --out models/korean-medical",
)
@options.RUN
@click.option(
    "--format",
    "form",
    metavar="FORMAT",
    help="hf: the whole model, as transformers loads it. peft: one PEFT adapter for the original base; its"
    " rank is the sum of the phases' ranks. gguf: one file for llama.cpp, with an Ollama Modelfile.",
)
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    help="How gguf stores weights: f16 (default), q8_0, bf16, f32.",
)
@click.option("--as-adapter", is_flag=True, help="The same as --format peft.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory.",
)
@options.base_option
@options.without_option
@options.json_option
def command(
    *, run: Path, form: str | None, kind: str | None, as_adapter: bool, out: Path, base: Path | None,
    without: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Export the final model of RUN in a form that other programs load.

    An adapter (peft) shares a result whose base may not be redistributed; base plus adapter is
    compared with the run's final weights before anything is written. Every tensor of a GGUF file is
    read back and compared. --base and --without-plugin are for peft only, which builds the model.
    """
    import attrs

    from mgk_cli.console import line
    from mgk_cli.listing import print_json
    from mgk_cli.progress import waiting
    from mgk_core.tools.export import export_adapter
    from mgk_core.tools.export_model import export_model, formats

    if as_adapter and form not in (None, "peft"):
        raise click.UsageError(f"--as-adapter means --format peft, not {form}")
    chosen = "peft" if as_adapter else form
    if chosen is None:
        raise click.UsageError(f"--format is missing; known: {', '.join(formats())}")
    if chosen == "peft" and kind is not None:
        raise click.UsageError("--type: an adapter has none; leave it out")
    if chosen != "peft" and (base is not None or without):
        raise click.UsageError("--base and --without-plugin are for --format peft only")
    with waiting("exporting", silent=as_json):
        if chosen != "peft":
            model = export_model(run, out, form=chosen, kind=kind)
        else:
            adapter = export_adapter(run, out, without=without, base=base)
    if as_json:
        print_json([attrs.asdict(adapter if chosen == "peft" else model)])
    elif chosen == "peft":
        _print(adapter, run)
    else:
        line(f"model {model.directory}: {chosen}")
        for text in model.lines:
            line(text)


def _print(made: Exported, run: Path) -> None:
    from mgk_cli.console import line
    from mgk_cli.formatting import count

    low, high = made.ranks
    line(f"adapter {made.directory}: {' + '.join(made.phases)}")
    line(
        f"rank {low if low == high else f'{low} to {high}'}, {count(made.parameters)} parameters"
    )
    line(
        f"base + adapter vs the run's weights: error {made.verification.error:.2g},"
        f" tolerance from rounding {made.verification.bound:.2g}"
    )
    for name in made.left_out:
        line(f"not included: {name} was not merged; its adapter is in {run}/phases")
