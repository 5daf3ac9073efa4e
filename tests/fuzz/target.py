"""A target for atheris: readers of configuration, rows and records against any bytes.

``make fuzz`` runs it for a minute, and CI with it. It begins with files that are right, one of each kind, so
that the readers are reached behind their first look. Hypothesis drives the same readers in
``tests/badinput/test_badinput_fuzz.py``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mgk_core", "mgk_text"]):
    import torch

    from mgk_core.config.resolve import load_tree, resolve
    from mgk_core.contract.errors import MgkError
    from mgk_core.contract.files import read_tensors
    from mgk_core.host.manager import load_plugins
    from mgk_core.record.checkpoint import load_checkpoint
    from mgk_core.record.journal import Journal, open_journal
    from mgk_core.record.ledger import Ledger, read_ledger
    from mgk_core.record.store import Store, put_tensors
    from mgk_text.readers import read
    from mgk_text.rows import Reader
    from mgk_text.sources import FileSource
    from mgk_text.specs import (
        AutoSpec,
        ChatSpec,
        DictionarySpec,
        InstructionSpec,
        McqSpec,
        PlainTextSpec,
        PreferenceSpec,
    )
    from mgk_text.splits import load

FOLDER = Path(tempfile.mkdtemp(prefix="mgk-fuzz-"))
REGISTRY = load_plugins().registry
KINDS = {
    "text": PlainTextSpec,
    "dictionary": DictionarySpec,
    "mcq": McqSpec,
    "auto": AutoSpec,
    "chat": ChatSpec,
    "instruction": InstructionSpec,
    "preference": PreferenceSpec,
}
Read = Callable[[Path], object]


def rows(kind: str) -> Read:
    """Read a file as the rows of one kind of data."""

    def read_rows(path: Path) -> None:
        spec = KINDS[kind](type=kind, train=str(path))
        reader = Reader(spec)
        load(spec, reader)
        reader.check()

    return read_rows


def columns(path: Path) -> object:
    """Read a file as a table."""
    return read(FileSource("x", path))


READERS: tuple[tuple[str, Read], ...] = (
    ("c.toml", lambda path: resolve(load_tree(file=path), REGISTRY)),
    ("journal.jsonl", lambda path: open_journal(Store(path.parent), repair=False)),
    ("ledger.json", lambda path: read_ledger(path.parent)),
    ("state.json", lambda path: load_checkpoint(path.parent)),
    ("t.safetensors", read_tensors),
    ("x.csv", columns),
    ("x.tsv", columns),
    ("x.txt", columns),
    ("text.jsonl", rows("text")),
    ("dictionary.jsonl", rows("dictionary")),
    ("mcq.jsonl", rows("mcq")),
    ("auto.json", rows("auto")),
    ("auto.csv", rows("auto")),
    ("chat.jsonl", rows("chat")),
    ("instruction.jsonl", rows("instruction")),
    ("preference.jsonl", rows("preference")),
)
"""(the file's name, what reads it): the first byte of an input chooses."""


def seeds(folder: Path) -> Path:
    """Write one right file of each kind, as inputs to begin with."""
    journal = folder / "made"
    journal.mkdir(parents=True)
    Journal(Store(journal)).add("started", identity={"base": "0"})
    put_tensors(journal / "t.safetensors", {"a": torch.zeros(2, 2)})
    right = {
        "c.toml": b'extends = "textmodel"\n[run]\nseed = 1\n[phases.mcq]\nadapter = {rank = 2, targets = ["layer1"]}\n',
        "journal.jsonl": (journal / "journal.jsonl").read_bytes(),
        "ledger.json": Ledger(base="0", base_spec={}, environment={}).text().encode(),
        "state.json": json.dumps(
            {"step": 1, "pending": [[0.0]], "files": {}, "hash": "0"}
        ).encode(),
        "t.safetensors": (journal / "t.safetensors").read_bytes(),
        "x.csv": 'term,text\n"a, b",글\n'.encode(),
        "x.tsv": b"term\ttext\na\tb\n",
        "x.txt": "한 줄\n또 한 줄\n".encode(),
        "text.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "dictionary.jsonl": b'{"ko": "a", "en": "b", "definition": "c", "specialty": "d"}\n',
        "mcq.jsonl": b'{"question": "q", "options": ["a", "b"], "answer": "A"}\n',
        "auto.json": b'{"data": [{"question": "q", "A": "a", "B": "b", "answer": 1}]}',
        "auto.csv": b"question,A,B,C,answer\nq,a,b,c,C\n",
        "chat.jsonl": b'{"messages": [{"role": "user", "content": "q"},'
        b' {"role": "assistant", "content": "a"}]}\n',
        "instruction.jsonl": b'{"instruction": "i", "input": "", "output": "o"}\n',
        "preference.jsonl": b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n',
    }
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, (name, _) in enumerate(READERS):
        (corpus / name).write_bytes(bytes([number]) + right[name])
    return corpus


def one(data: bytes) -> None:
    """Read some bytes as what the first of them says; only our own errors may come of it."""
    if not data:
        return
    name, reader = READERS[data[0] % len(READERS)]
    path = FOLDER / name
    path.write_bytes(data[1:])
    try:
        reader(path)
    except MgkError:
        return


if __name__ == "__main__":
    atheris.Setup([*sys.argv, str(seeds(FOLDER / "seeds"))], one)
    atheris.Fuzz()
