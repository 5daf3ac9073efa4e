"""Files of a table: Markdown, LaTeX, CSV, cells, and a picture where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from mgk_bench.picture import COST, GAP, dots_of, draw
from mgk_bench.table import Line, as_csv, as_latex, as_text
from mgk_core.contract.errors import EnvironmentFault


def write_files(
    out: Path, texts: Mapping[str, str], picture: Callable[[Path], Path]
) -> list[Path]:
    """Write each text under its name, and ``picture.svg``; return the paths.

    :raises EnvironmentFault: the folder cannot be written
    """
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            path = out / name
            path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise EnvironmentFault(f"{out}: cannot be written: {error}") from None
    if find_spec("matplotlib") is not None:
        paths.append(picture(out / "picture.svg"))
    return paths


def write_all(out: Path, found: Sequence[Line], cells: str) -> list[Path]:
    """Write table.md, table.tex, table.csv, cells.jsonl and the picture of gap closed against cost."""
    texts = {
        "table.md": as_text(found),
        "table.tex": as_latex(found),
        "table.csv": as_csv(found),
        "cells.jsonl": cells,
    }
    return write_files(out, texts, lambda path: draw(dots_of(found), COST, GAP, path))
