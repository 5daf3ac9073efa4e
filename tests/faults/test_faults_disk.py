"""A disk that fills up, forbids or breaks: a clear message, and a run that goes on once that is mended."""

from __future__ import annotations

import errno

import pytest

ALL = ["produce", "append", "make_folder", "truncate", "rename", "remove"]


def assert_told(answer, *words):
    """Assert that a fault of the environment was told with all these words."""
    assert answer["code"] == 3, answer
    for word in words:
        assert word in answer["message"], answer["message"]


@pytest.mark.parametrize("room", [100, 8_000, 20_000, 40_000, 60_000, 90_000, 110_000])
def test_a_full_disk_is_told_and_mended(server, whole, go_on, same_end, places, room):
    """Disk full at any byte: which file, what to do; nothing half-written; resumable."""
    run = next(places)
    answer = server.run(run, disk={"kind": "Full", "room": room})
    assert_told(answer, "cannot be written: No space left on device; free some space", str(run))
    assert not list(run.rglob(".tmp-*"))
    go_on(run)
    same_end(run, whole[0])


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EROFS, "choose a directory that can be written"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EIO, "check the disk"),
        (errno.EACCES, "that you may write to"),
    ],
)
@pytest.mark.parametrize("at", [1, 40, 90])
def test_a_disk_that_refuses_is_told(server, whole, go_on, same_end, places, number, mend, at):
    """Read-only, quota, no rights, broken device, from the first write or later on."""
    run = next(places)
    answer = server.run(run, disk={"kind": "Forbidding", "names": ALL, "error": number, "at": at})
    assert_told(answer, mend)
    go_on(run)
    same_end(run, whole[0])


def test_a_place_where_nothing_can_be_made(server):
    """A directory that the system itself refuses."""
    answer = server.run("/proc/mgk-run")
    assert_told(answer, "/proc/mgk-run", "choose a directory that you may write to")


@pytest.mark.parametrize("size", [1_000, 8_000, 14_000])
def test_a_limit_on_file_size_is_told(server, whole, go_on, same_end, places, size):
    """RLIMIT_FSIZE, the real thing: the journal or a tensor file hits it."""
    run = next(places)
    answer = server.run(run, limits={"RLIMIT_FSIZE": size})
    assert_told(answer, "File too large", "ulimit -f")
    go_on(run)
    same_end(run, whole[0])


@pytest.mark.parametrize("files", [4, 5, 6, 7, 8])
def test_a_limit_on_open_files_is_told(server, whole, go_on, same_end, places, files):
    """RLIMIT_NOFILE, the real thing."""
    run = next(places)
    answer = server.run(run, limits={"RLIMIT_NOFILE": files})
    if answer["code"]:
        assert_told(answer, "Too many open files", "ulimit -n")
        go_on(run)
    same_end(run, whole[0])
