"""A target for atheris: readers of configuration, rows and records against any bytes.

``python tests/fuzz/target.py -max_total_time=60`` runs it for a minute; CI does so where atheris is
installed. Hypothesis drives the same readers in ``tests/badinput/test_badinput_fuzz.py``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mgk_core", "mgk_text"]):
    from mgk_core.checkpoint import load_checkpoint
    from mgk_core.config import load_tree, resolve
    from mgk_core.errors import MgkError
    from mgk_core.journal import open_journal
    from mgk_core.ledger import read_ledger
    from mgk_core.manager import load_plugins
    from mgk_core.store import Store, read_tensors
    from mgk_text.readers import read
    from mgk_text.sources import FileSource

FOLDER = Path(tempfile.mkdtemp(prefix="mgk-fuzz-"))
REGISTRY = load_plugins().registry
SUFFIXES = (".jsonl", ".csv", ".tsv", ".txt")
READERS = (
    lambda path: resolve(load_tree(file=path("c.toml")), REGISTRY),
    lambda path: open_journal(Store(path("journal.jsonl").parent), repair=False),
    lambda path: read_ledger(path("ledger.json").parent),
    lambda path: load_checkpoint(path("state.json").parent),
    lambda path: read_tensors(path("t.safetensors")),
    *(lambda path, suffix=suffix: read(FileSource("x", path("x" + suffix))) for suffix in SUFFIXES),
)


def one(data: bytes) -> None:
    """Read some bytes as what the first of them says; only our own errors may come of it."""
    if not data:
        return

    def path(name: str) -> Path:
        (FOLDER / name).write_bytes(data[1:])
        return FOLDER / name

    try:
        READERS[data[0] % len(READERS)](path)
    except MgkError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
