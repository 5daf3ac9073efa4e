"""``mgk init``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mgk_cli.lazy import Command

QUESTIONS = {
    "base": "1/5 Base model: a directory, a hub id, or tiny-gemma to try things out",
    "data": "2/5 Training data: files or folders, one a phase, in order, separated by commas",
    "hardware": "3/5 Hardware: cpu, gpu, or small-gpu (the base in 4 bits)",
    "keep": "4/5 What must not be lost: ko, en, files with texts, or nothing",
    "out": "5/5 Where the run is written",
}


@click.command(
    "init",
    cls=Command,
    short_help="Write a configuration from five answers, and show its plan.",
    epilog="Example: mgk init my.toml --data data/chat.jsonl --base models/gemma-3-270m",
)
@click.argument("file", type=click.Path(path_type=Path), default="mgk.toml")
@click.option("--base", metavar="ID", help="Directory or hub id of the base model.")
@click.option("--data", metavar="FILES", help="Training data, one source a phase.")
@click.option("--hardware", metavar="NAME", help="cpu, gpu or small-gpu.")
@click.option("--keep", metavar="WHAT", help="ko, en, files, or nothing.")
@click.option("--out", metavar="DIR", help="Run directory of the command at the end.")
@click.option("--no-plan", is_flag=True, help="Write the file only; load nothing.")
def command(*, file: Path, no_plan: bool, **given: str | None) -> None:
    """Ask for base, data, hardware, what must not be lost and where to, and write FILE.

    FILE is mgk.toml where it is not named. An answer may be given as an option instead. Then the
    plan of the new configuration is shown, as 'mgk plan' shows it: steps, memory, disk. Nothing is
    trained.
    """
    from mgk_cli.console import line
    from mgk_core.contract.errors import InputError
    from mgk_phases.starter import Answers, check, starter

    if file.exists():
        raise InputError(f"{file}: exists; choose another name")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file}: there is no directory {file.parent}")
    found = {name: _answer(name, given[name], file) for name in QUESTIONS}
    answers = Answers(
        base=found["base"], data=_several(found["data"]), hardware=_hardware(found["hardware"]),
        keep=tuple(k for k in _several(found["keep"]) if k != "nothing"), out=found["out"],
    )  # fmt: skip
    check(answers)
    file.write_text(starter(answers), encoding="utf-8")
    line(f"wrote {file}")
    if not no_plan:
        _plan(file)
    line(f"next: mgk run --config {file} --out {answers.out}")


def _answer(name: str, given: str | None, file: Path) -> str:
    """Return an option's value, or ask for it on a terminal."""
    if given is not None:
        return given
    default = {
        "base": "tiny-gemma", "hardware": _machine() if name == "hardware" else "",
        "keep": "ko, en", "out": f"runs/{file.stem}",
    }.get(name)  # fmt: skip
    if not sys.stdin.isatty() and default is None:
        raise click.UsageError(f"--{name} is missing, and there is no terminal to ask")
    if not sys.stdin.isatty():
        return str(default)
    answer: str = click.prompt(QUESTIONS[name], default=default)
    return answer


def _machine() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _hardware(name: str) -> str:
    from mgk_core.contract.errors import InputError, nearest
    from mgk_phases.starter import HARDWARE

    if name not in HARDWARE:
        raise InputError(
            f"hardware {name!r}: expected {', '.join(HARDWARE)}{nearest(name, HARDWARE)}"
        )
    return name


def _plan(file: Path) -> None:
    from mgk_cli.console import make, show
    from mgk_cli.plan_view import drawn
    from mgk_cli.progress import waiting
    from mgk_core.config.resolve import load_tree
    from mgk_core.run.setup import prepare
    from mgk_core.tools.plan import make_plan

    with waiting("planning"):
        plan = make_plan(prepare(load_tree(None, file, ())))
    show(*drawn(plan, make().width, hooks=False))
