"""A disk that fills up, forbids or breaks: a clear message, and a run that goes on once that is mended."""

from __future__ import annotations

import errno
import subprocess

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
    assert_told(
        answer, "cannot be written: No space left on device; free some space", str(run)
    )
    assert not list(run.rglob(".tmp-*"))
    go_on(run)
    same_end(run, whole[0])


@pytest.fixture
def small(tmp_path):
    """A file system of 60 KiB, where this process may mount one; its mount options can be changed."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
            capture_output=True,
            check=False,
        )

    if mount("size=60k").returncode:
        pytest.skip("may not mount a file system")
    yield place, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", place], check=True)


def test_a_file_system_that_is_full_or_read_only(server, whole, go_on, same_end, small):
    """The real thing: no space, then space again, then no writing at all."""
    place, remount = small
    run = place / "run"
    assert_told(
        server.run(run),
        "cannot be written: No space left on device; free some space",
        str(run),
    )
    assert not list(run.rglob(".tmp-*"))
    assert_told(server.resume(run), "No space left on device")
    remount("size=3m")
    go_on(run)
    same_end(run, whole[0])
    remount("ro")
    assert_told(
        server.run(place / "other"),
        "Read-only file system; choose a directory that can be written",
    )
    assert_told(server.resume(run), "Read-only file system")
    remount("rw")


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
def test_a_disk_that_refuses_is_told(
    server, whole, go_on, same_end, places, number, mend, at
):
    """Read-only, quota, no rights, broken device, from the first write or later on."""
    run = next(places)
    answer = server.run(
        run, disk={"kind": "Forbidding", "names": ALL, "error": number, "at": at}
    )
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
