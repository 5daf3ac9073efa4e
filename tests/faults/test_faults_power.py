"""A power failure leaves only what was synced: the run goes on from that, to the same bits.

SIGKILL cannot show a missing fsync, since the system still has what was written. `disks.Forgetting`
keeps what a device would have, and hands it out after any operation.
"""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(("keep", "seed"), [(0.0, 0), (0.5, 1), (0.9, 2)])
def test_what_was_not_synced_may_be_lost(
    server, whole, go_on, same_end, kills, places, counted, keep, seed
):
    """Whatever share of the unsynced writes and renames survives, resume ends as if nothing had been."""
    reference, operated = whole
    total, wanted = (
        operated["count"],
        max(4, kills * 3 // 10) if keep == 0.0 else max(2, kills // 10),
    )
    at = (
        list(range(1, total + 1))
        if kills >= 200 and keep == 0.0
        else [int(total * (i + 0.5) / wanted) for i in range(wanted)]
    )
    run, left = next(places), next(places)
    disk = {
        "kind": "Forgetting",
        "root": str(run),
        "out": str(left),
        "at": at,
        "keep": keep,
        "seed": seed,
    }
    answer = server.run(run, disk=disk)
    assert answer["code"] == 0, answer["message"]
    states = sorted(
        left.glob("after-*"), key=lambda p: int(p.name.removeprefix("after-"))
    )
    assert len(states) == len(at)
    kind = "power failures resumed with equal digests"
    count = counted(kind, len(states), f"{keep:.0%} of what was not synced survives")
    for state in states:
        go_on(state)
        same_end(state, reference)
        count.right += 1


def test_the_double_finds_a_missing_sync(server, places):
    """A store that forgets to sync loses files at a power failure: the double can tell the difference."""
    run, left = next(places), next(places)
    disk = {"kind": "Negligent", "root": str(run), "out": str(left), "at": [200]}
    assert server.run(run, disk=disk)["code"] == 0
    state = left / "after-200"
    assert (run / "run.toml").stat().st_size > 0
    assert not (state / "run.toml").exists() or (state / "run.toml").stat().st_size == 0


def test_the_run_directory_itself_is_synced(server, places):
    """The folder that a new run directory is an entry of is brought to the device too."""
    run = next(places) / "deep" / "run"
    names = server.run(run, disk={"kind": "Counting"})["names"]
    assert names[:4] == [
        "make_folder run-0",
        f"sync {run.parents[2].name}",
        "make_folder deep",
        "sync run-0",
    ]
    assert names[4:6] == ["make_folder run", "sync deep"]
