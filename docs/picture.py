"""Draw what a command really prints as an SVG for the README.

    python docs/picture.py docs/pictures/textmodel.svg -- mgk run textmodel --out DIR

`DIR` stands for a new directory. Nothing is edited but the directory's name; the picture refers to no other file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

WIDTH = 112
PAPER = TerminalTheme(
    (250, 250, 248), (40, 44, 52),
    [(40, 44, 52), (200, 50, 47), (32, 120, 60), (160, 110, 0), (30, 90, 170), (140, 50, 130), (0, 120, 130), (90, 95, 105)],
)  # fmt: skip
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; white-space: pre; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def printed(command: list[str]) -> str:
    """Run a command and return what it printed, colours and all; DIR becomes a new directory, shown as runs/first."""
    with tempfile.TemporaryDirectory() as where:
        words = [w.replace("DIR", "runs/first") for w in command]
        environment = {**os.environ, "COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        cwd = where if "DIR" in " ".join(command) else None
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return f"$ {' '.join(words)}\n{done.stdout}"


def draw(text: str, title: str) -> str:
    """Return the SVG of a terminal that shows ``text``."""
    console = Console(record=True, width=WIDTH, file=Path(os.devnull).open("w"), force_terminal=True)
    console.print(Text.from_ansi(text.rstrip("\n")), overflow="ignore", no_wrap=True, crop=True)
    svg = console.export_svg(title=title, theme=PAPER, code_format=FRAME, unique_id="mgk")
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def main() -> int:
    """Draw one picture."""
    target, dashes, *command = sys.argv[1:]
    if dashes != "--" or not command:
        raise SystemExit(__doc__)
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw(printed(command), " ".join(command[:2])), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
