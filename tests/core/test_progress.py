"""Counting of long loops: who is told, under which name, and how far."""

import pytest

from mgk_core.contract import progress
from mgk_core.contract.progress import activity, counting, reporting_to, track


@pytest.fixture
def events(monkeypatch):
    """Return the events of everything inside the test; no loop is too short to be reported."""
    monkeypatch.setattr(progress, "SILENT", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    found = []
    with reporting_to(lambda e: found.append(e) if e["event"] == "progress" else None):
        yield found


def test_a_tracked_loop_is_reported_to_its_end(events):
    """Each item once, named by the activity, with the total from the first report on."""
    with activity("scoring a"):
        assert list(track([5, 6, 7], "batches")) == [5, 6, 7]
    assert [(e["what"], e["done"], e["total"], e["unit"]) for e in events] == [
        ("scoring a", n, 3, "batches") for n in (1, 2, 3)
    ]


def test_only_the_outermost_loop_of_an_activity_counts(events):
    """A loop inside a loop would make the bar jump back; one of an activity of its own counts."""
    with activity("outer"):
        for _ in track("ab"):
            assert list(track([1, 2])) == [1, 2]
            with activity("inner"):
                list(track([1]))
    assert [(e["what"], e["done"]) for e in events] == [
        ("inner", 1), ("outer", 1), ("inner", 1), ("outer", 2),
    ]  # fmt: skip


def test_a_loop_that_fails_leaves_the_next_one_counting(events):
    """An error inside a tracked loop does not silence what comes after it."""

    def failing():
        with activity("first"), counting(3) as advance:
            advance(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    list(track([1]))
    assert [(e["what"], e["done"]) for e in events] == [("first", 1), ("working", 1)]


def test_short_loops_are_silent():
    """A loop of less than half a second is not reported; the name of what is done is."""
    found = []
    with reporting_to(found.append), activity("short"):
        list(track(range(100)))
    assert [(e["event"], e["what"]) for e in found] == [
        ("activity", "short"), ("activity", "working"),
    ]  # fmt: skip


def test_counting_without_a_listener_does_nothing():
    """Outside a command the same code runs and reports to nobody."""
    with activity("alone"), counting(2) as advance:
        advance(1)
    assert list(track({1: 2}.items())) == [(1, 2)]
