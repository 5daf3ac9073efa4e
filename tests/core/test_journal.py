"""The journal: hash-chained lines; a torn end is cut, anything else that is wrong is found."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.errors import DigestError, StoreError
from mgk_core.record.commit import commit, settle, standing
from mgk_core.record.journal import open_journal
from mgk_core.record.ledger import Ledger
from mgk_core.record.run_directory import JOURNAL
from mgk_core.record.store import Store


@pytest.fixture
def store(tmp_path):
    """A store with a journal of five events."""
    store = Store(tmp_path)
    journal = open_journal(store)
    for i in range(5):
        journal.add("step", number=i, text="값 " * i, loss=math.nan)
    return store


def test_events_come_back_in_order(store):
    """What was added is read, and found by kind and content."""
    journal = open_journal(store)
    assert [e["number"] for e in journal.events] == [0, 1, 2, 3, 4]
    assert journal.last("step", number=3)["text"] == "값 값 값 "
    assert journal.last("other") is None


def test_the_latest_value_of_a_key_is_found_whatever_event_has_it(store):
    """Of several events the last counts; a key that no event has gives None."""
    journal = open_journal(store)
    journal.add("other", digest="d")
    assert journal.latest("number") == 4
    assert journal.latest("digest") == "d"
    assert journal.latest("nothing") is None


@pytest.mark.parametrize("cut", [1, 2, 30, 80])
def test_a_torn_last_line_is_cut_off(store, cut):
    """What a crash leaves of the last line goes; all before it stays."""
    path = store.path(JOURNAL)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    looked = open_journal(store, repair=False)
    assert (len(looked.events), path.read_bytes()) == (4, whole[:-cut])
    assert looked.torn > 0
    assert len(open_journal(store).events) == 4
    assert whole.startswith(path.read_bytes())
    open_journal(store).add("more")
    assert [e["event"] for e in open_journal(store).events][-1] == "more"


def test_blocks_that_were_never_written_are_torn_too(store):
    """A file system may leave zeros where a line was to be."""
    path = store.path(JOURNAL)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(lines[:-1]) + b"\0" * (len(lines[-1]) - 5) + lines[-1][-5:]
    )
    assert len(open_journal(store).events) == 4


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory, at, bit):
    """Wherever a bit flips, the journal is refused with the line's number, or (in the very end) cut."""
    store = Store(tmp_path_factory.mktemp("flip"))
    journal = open_journal(store)
    for i in range(4):
        journal.add("step", number=i)
    path = store.path(JOURNAL)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    line = bytes(data[:at]).count(b"\n") + 1
    said, torn = "", 0
    try:
        torn = open_journal(store, repair=False).torn
    except StoreError as error:
        said = str(error)
    assert torn or f"{JOURNAL}:{line}:" in said or f"{JOURNAL}:{line + 1}:" in said


@pytest.mark.parametrize(
    "order", [(0, 1, 3, 4), (1, 0, 2, 3, 4), (0, 0, 1, 2, 3, 4), (0, 1, 2, 4, 3)]
)
def test_lost_swapped_and_doubled_lines_are_found(store, order):
    """The chain breaks where a line is not the successor of the one before."""
    path = store.path(JOURNAL)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(StoreError, match="the journal is damaged here"):
        open_journal(store)


@pytest.mark.parametrize(
    "line", [b"[]\n", b"{}\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b'{"event": 1}\n']
)
def test_foreign_lines_are_refused(store, line):
    """A line that is none of ours is damage, also at the end."""
    with store.path(JOURNAL).open("ab") as file:
        file.write(line)
    with pytest.raises(StoreError, match=f"{JOURNAL}:6"):
        open_journal(store)


def ledger(name="a"):
    """Return a ledger without phases."""
    return Ledger(base=name, base_spec={}, environment={})


def test_a_commit_is_known_at_every_instant(tmp_path):
    """Prepared and not written: not committed. Written and not confirmed: committed, and confirmed by settling."""
    store = Store(tmp_path)
    journal = open_journal(store)
    commit(store, journal, ledger(), "base", more=1)
    assert standing(store, journal) == "confirmed"
    before = store.path("ledger.json").read_bytes()
    commit(store, journal, ledger("b"), "committed", phase="x")
    after, lines = (
        store.path("ledger.json").read_bytes(),
        store.path(JOURNAL).read_bytes().splitlines(keepends=True),
    )
    store.path(JOURNAL).write_bytes(b"".join(lines[:-1]))
    assert settle(store, open_journal(store)).base == "b"
    assert open_journal(store).last("committed", phase="x") is not None
    store.path(JOURNAL).write_bytes(b"".join(lines[:-1]))
    store.path("ledger.json").write_bytes(before)
    assert settle(store, open_journal(store)).base == "a"
    store.path("ledger.json").write_bytes(after.replace(b'"b"', b'"c"'))
    with pytest.raises(DigestError, match=r"ledger\.json"):
        settle(store, open_journal(store))
    store.path("ledger.json").unlink()
    with pytest.raises(DigestError, match="found missing"):
        settle(store, open_journal(store))
