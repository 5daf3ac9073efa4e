"""What is sent: the files of a model or an adapter, with the paths of this machine shortened to names."""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from attrs import frozen

from mgk_core.contract.errors import InputError
from mgk_core.record.ledger import check_files, read_ledger
from mgk_core.record.run_directory import CONFIG, MODEL, require_run

CLEANED = ("README.md", "*.toml", "*config.json", "mgk-export.json")
"""Files that mgk and transformers write paths into. A tokenizer's vocabulary may contain what looks like one."""


@frozen
class Item:
    """One file. content: where it is, or its bytes where paths were shortened. paths: how many were."""

    name: str
    content: Path | bytes
    paths: int = 0

    @property
    def size(self) -> int:
        """Bytes that are sent."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size


def model_parcel(run: Path) -> list[Item]:
    """Return the files of RUN/model, which are compared with the run's ledger first.

    :raises InputError: the run has no model yet
    :raises DigestError: a file is not what the run wrote
    """
    require_run(run)
    ledger = read_ledger(run)
    files = {n: d for n, d in ledger.files.items() if n.startswith(f"{MODEL}/")}
    if not files:
        raise InputError(
            f"{run}: has no {MODEL}/ yet, since the run has not finished; 'mgk resume {run}' first"
        )
    check_files(run, files)
    return pack(run / MODEL, [run / name for name in files], run)


def pack(root: Path, files: Iterable[Path], run: Path) -> list[Item]:
    """Return items for ``files``, named from ``root``."""
    paths = machine_paths(run)
    found = []
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        if any(fnmatch(path.name, pattern) for pattern in CLEANED):
            text, count = shortened(path.read_text(encoding="utf-8"), paths)
            found.append(Item(name, text.encode() if count else path, count))
        else:
            found.append(Item(name, path))
    return found


def machine_paths(run: Path) -> list[str]:
    """Return the directories and files of this machine that a run's records may name, longest first."""
    config = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
    absolute = {text for text in _strings(config) if Path(text).is_absolute()}
    places = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), run.absolute()}
    found = absolute | {str(p) for place in places for p in (place, place.resolve())}
    return sorted(found - {"/"}, key=len, reverse=True)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def shortened(text: str, paths: Sequence[str]) -> tuple[str, int]:
    """Replace each path, and whatever follows it in the same path, by its last part; and count them."""
    total = 0
    for path in paths:
        # JSON may write other letters as escapes.
        for written in {path, json.dumps(path)[1:-1]}:
            # Not inside a longer word, and not where another name begins with this one's.
            pattern = (
                rf"(?<![\w./~-]){re.escape(written)}(?:/[^\s\"'`,;|)\]}}]*)?(?![\w.-])"
            )
            text, count = re.subn(pattern, lambda m: Path(m[0]).name, text)
            total += count
    return text, total
