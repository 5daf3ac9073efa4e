"""Run the code of the documentation: every bash, sh, python and toml block is marked with what it is for.

    python docs/blocks.py PAGE... [--slow]      run pages, each in a directory of its own

The line above a block marks it:

    <!-- run -->                 run it; bash stops at the first error, python is a program of its own
    <!-- run slow -->            the same, only in the slow tests
    <!-- run exit=1 -->          the last command must end with this exit code
    <!-- run inside=NAME -->     put it in place of the line "# HERE" of docs/snippets/NAME, and run that
    <!-- file NAME -->           write it to NAME, for the blocks that follow
    <!-- not run: REASON -->     leave it, and give the reason
    <!-- output -->              (text) what the block before printed: these lines in this order; … stands for anything
"""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[1]
MARKED = ("bash", "sh", "python", "toml")
_FENCE = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n\n?)?(?P<fence>```+)(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=fence)$", re.M | re.S)


@frozen
class Block:
    """One fenced block. mark: the comment above it, empty where there is none."""

    page: Path
    line: int
    language: str
    mark: str
    code: str

    @property
    def action(self) -> str:
        """``run``, ``file``, ``not`` or ``output``; empty where the block is not marked."""
        return self.mark.split(" ")[0].rstrip(":")

    @property
    def slow(self) -> bool:
        """Whether only the slow tests run it."""
        return self.action == "run" and "slow" in self.mark.split()

    def option(self, name: str, default: str = "") -> str:
        """Return ``value`` of ``name=value`` in the mark."""
        found = re.search(rf"\b{name}=(\S+)", self.mark)
        return found[1] if found else default

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class BlockError(Exception):
    """A block did not do what its page claims."""


def pages() -> list[Path]:
    """Return every page that may hold code."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's fenced blocks in order."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        yield Block(page, line, match["language"], match["mark"] or "", match["code"])


def run_page(page: Path, where: Path, environment: dict[str, str], *, slow: bool) -> int:
    """Run a page's blocks in order in the directory ``where``; return how many ran.

    :raises BlockError: one ended with another exit code, or printed something else
    """
    ran, printed = 0, None
    for block in blocks(page):
        if block.slow and not slow:
            printed = None
        elif block.action == "file":
            path = where / block.mark.split(" ")[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
        elif block.action == "run":
            printed = _run(block, where, environment)
            ran += 1
        elif block.action == "output" and printed is not None:
            _compare(block, printed)
    return ran


def _run(block: Block, where: Path, environment: dict[str, str]) -> str:
    code = block.code
    if inside := block.option("inside"):
        code = (ROOT / "docs" / "snippets" / inside).read_text(encoding="utf-8").replace("# HERE\n", code)
    if block.language == "python":
        script = where / f"block_{block.line}.py"
        script.write_text(code, encoding="utf-8")
        command = [sys.executable, str(script)]
    else:
        command = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    wanted = int(block.option("exit", "0"))
    if done.returncode != wanted:
        raise BlockError(f"{block}: ended with {done.returncode}, not {wanted}:\n{block.code}\n{done.stdout[-6000:]}")
    return done.stdout


def _compare(block: Block, printed: str) -> None:
    lines = iter(" ".join(line.split()) for line in printed.splitlines())
    for wanted in filter(None, (" ".join(line.split()) for line in block.code.splitlines())):
        pattern = re.sub(r"([\[\]?*])", r"[\1]", wanted)
        pattern = re.sub(r" ?… ?", "*", pattern)
        if not any(fnmatch.fnmatchcase(line, pattern) for line in lines):
            raise BlockError(f"{block}: this line is not (or not here) in what the block before printed:\n{wanted}\n\n{printed}")


def environment_for(scratch: Path) -> dict[str, str]:
    """Return the environment in which pages run: this Python first, no network, a cache of its own."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    plain = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "110", "NO_COLOR": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    cache = {} if "MGK_CACHE" in os.environ else {"MGK_CACHE": str(scratch / "cache")}
    return {**os.environ, "PATH": path, "MGK_ROOT": str(ROOT), **plain, **cache}


def main() -> int:
    """Run the pages named on the command line."""
    slow = "--slow" in sys.argv
    for name in (a for a in sys.argv[1:] if a != "--slow"):
        with tempfile.TemporaryDirectory() as where:
            try:
                count = run_page(Path(name).resolve(), Path(where), environment_for(Path(where)), slow=slow)
            except BlockError as error:
                print(error, file=sys.stderr)
                return 1
            print(f"{name}: {count} blocks ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
