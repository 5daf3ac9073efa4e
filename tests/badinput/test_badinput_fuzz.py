"""Whatever the bytes: a configuration, a row file, a journal or a checkpoint is read or refused, never a crash.

``tests/fuzz/target.py`` drives the same readers with atheris, where that is installed.
"""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.errors import MgkError
from mgk_core.contract.files import read_tensors
from mgk_core.host.manager import load_plugins
from mgk_core.record.checkpoint import load_checkpoint
from mgk_core.record.journal import open_journal
from mgk_core.record.ledger import read_ledger
from mgk_core.record.run_directory import JOURNAL
from mgk_core.record.store import Store

PIECES = st.sampled_from([
    b"{", b"}", b"[", b"]", b'"', b"=", b"\n", b",", b"\0", b"\xff", b"\r", b"'''", b"type", b"phases", b"adapter", b"lora",
    b"nan", b"-1", b"1e999", b"9" * 40, "한글".encode(), "\u202e".encode(), b'"text"', b": ", b"extends", b".", b"[[", b"#",
])  # fmt: skip
BYTES = st.binary(max_size=200) | st.lists(PIECES, max_size=40).map(b"".join)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.dates().map(str),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_letters, max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def registry():
    """What the installed plugins registered."""
    return load_plugins().registry


@pytest.fixture
def path(tmp_path_factory):
    """A file to write to; one folder serves all examples of a test."""
    return tmp_path_factory.mktemp("fuzz") / "x"


@given(data=BYTES)
def test_configuration_of_any_bytes(registry, path, data):
    """A configuration resolves or is refused with its problems."""
    path.write_bytes(data)
    with_errors(lambda: resolve(load_tree(file=path), registry))


KEYS = st.sampled_from([
    "run", "run.seed", "base", "base.widths", "base.type", "phases", "phases.mcq", "phases.mcq.adapter", "phases.mcq.gate",
    "phases.mcq.adapter.targets", "phases.mcq.train", "phases.mcq.optimizer.lr", "phases.mcq.recover", "defaults", "name",
    "phases.mcq.retention", "phases.mcq.after", "plugins", "plugins.prefer", "title", "phases.mcq.data", "phases.mcq.use",
])  # fmt: skip


@given(key=KEYS, value=VALUE)
def test_any_value_of_any_key(registry, key, value):
    """A value of whatever kind in whatever place is taken or refused, with the place."""
    problem = with_errors(
        lambda: resolve(load_tree("textmodel", overrides={key: value}), registry)
    )
    assert problem is None or str(problem).strip()


@given(
    data=BYTES, suffix=st.sampled_from([".jsonl", ".csv", ".tsv", ".txt", ".parquet"])
)
@example(data=b"\n,", suffix=".csv")
@example(data=b"\n\t\t\n", suffix=".tsv")
@example(data=b"\xe1\xe1\n,", suffix=".csv")
def test_rows_of_any_bytes(path, data, suffix):
    """A reader gives rows and problems with their lines."""
    from mgk_text.readers import read
    from mgk_text.sources import FileSource

    file = path.with_suffix(suffix)
    file.write_bytes(data)
    table = read(FileSource("x", file))
    assert table.rows or table.problems
    assert all(str(p).startswith("x") for p in table.problems)


@given(
    row=st.dictionaries(
        st.sampled_from(
            ["text", "ko", "en", "question", "options", "answer", "A", "B"]
        ),
        VALUE,
    ),
    kind=st.sampled_from(["text", "dictionary", "mcq"]),
)
def test_rows_of_any_values(path, row, kind):
    """A row of any values is taken, or refused with file and line."""
    from mgk_text.rows import Reader
    from mgk_text.specs import DictionarySpec, McqSpec, PlainTextSpec
    from mgk_text.splits import load

    file = path.with_suffix(".jsonl")
    file.write_text(json.dumps(row) + "\n")
    spec = {"text": PlainTextSpec, "dictionary": DictionarySpec, "mcq": McqSpec}[kind](
        type=kind, train=str(file)
    )

    def take():
        reader = Reader(spec)
        load(spec, reader)
        reader.check()

    problem = with_errors(take)
    assert problem is None or "x.jsonl" in str(problem)


@given(data=BYTES)
def test_records_of_any_bytes(path, data):
    """Journal, ledger, tensors and checkpoints of any bytes are refused by name."""
    folder = path.parent
    for name in (JOURNAL, "ledger.json", "state.json", "t.safetensors"):
        (folder / name).write_bytes(data)
    for read in (
        lambda: open_journal(Store(folder), repair=False),
        lambda: read_ledger(folder),
        lambda: read_tensors(folder / "t.safetensors"),
        lambda: load_checkpoint(folder),
    ):
        with_errors(read)


def with_errors(read):
    """Return the error that was raised and is one of ours; anything else is a fault."""
    try:
        read()
    except MgkError as error:
        return error
    return None
