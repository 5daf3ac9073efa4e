"""The run directory: one process at a time, never over what is there."""

from __future__ import annotations

import json
import os

import pytest

from mgk_core.contract.errors import InputError, StoreError
from mgk_core.record.run_directory import LOCK, Lock, claim, owner_of, require_run


def test_the_second_lock_is_refused_with_its_owner(tmp_path):
    """Who holds it, and what to do."""
    lock = Lock(tmp_path)
    assert f"process {os.getpid()}" in owner_of(tmp_path)
    with pytest.raises(
        InputError, match=f"in use by process {os.getpid()} on .* wait for it to end"
    ):
        Lock(tmp_path)
    lock.release()
    lock.release()
    assert not (tmp_path / LOCK).exists()
    assert owner_of(tmp_path) is None


def test_a_lock_that_nobody_holds_is_taken_over(tmp_path):
    """A dead process's file does not block; who left it is known, also where it is not readable."""
    for content, owner in (
        (json.dumps({"pid": 1, "host": "h", "since": "t"}), "process 1 on h since t"),
        ("{", "another process"),
    ):
        (tmp_path / LOCK).write_text(content)
        lock = Lock(tmp_path)
        assert lock.stale == owner
        lock.release()


def test_a_lock_that_was_removed_meanwhile_is_not_believed(tmp_path):
    """Its owner removes the file before letting go: holding the old file is holding nothing."""
    first = Lock(tmp_path)
    old = os.open(tmp_path / LOCK, os.O_RDWR)
    first.release()
    second = Lock(tmp_path)
    assert not os.path.samestat(os.fstat(old), (tmp_path / LOCK).stat())
    with pytest.raises(InputError, match="in use"):
        Lock(tmp_path)
    second.release()
    os.close(old)


def test_a_link_in_the_lock_s_place_is_not_written_through(tmp_path):
    """A hostile run directory cannot have another file emptied."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).symlink_to(victim)
    with pytest.raises(StoreError, match="cannot be written"):
        Lock(run)
    assert victim.read_text() == "precious"


def test_a_new_run_takes_only_an_empty_place(tmp_path):
    """Nothing of the user's is ever overwritten or mixed with a run's files."""
    assert claim(tmp_path / "a/b/new") == (
        tmp_path / "a",
        tmp_path / "a/b",
        tmp_path / "a/b/new",
    )
    assert claim(tmp_path / "a/b/new") == ()
    for name, said in (
        ("notes.txt", "is not empty"),
        ("journal.jsonl", "mgk resume"),
        ("run.toml", "mgk resume"),
    ):
        place = tmp_path / f"with-{name}"
        place.mkdir()
        (place / name).write_text("x")
        with pytest.raises(InputError, match=said):
            claim(place)
        assert (place / name).read_text() == "x"
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("x")
    link.symlink_to(tmp_path / "a")
    for place in (file, link, tmp_path / "dangling"):
        if place.name == "dangling":
            place.symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match="exists and is not a directory"):
            claim(place)
    with pytest.raises((InputError, StoreError)):
        claim(file / "below")


@pytest.mark.parametrize("name", ["none", "file", "empty", "\0", "x" * 5000])
def test_what_is_no_run_is_refused(tmp_path, name):
    """Missing, a file, an empty directory, impossible names."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="run directory"):
        require_run(tmp_path / name)
