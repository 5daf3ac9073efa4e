"""A flipped bit or a cut in any file of a run is found by digest and named, and never silently used."""

from __future__ import annotations

import shutil

import pytest

from mgk_core.tools.verify_run import audit


@pytest.fixture(scope="module")
def stopped(server, shelf):
    """A run that was killed in its second phase: with checkpoints, and a transition behind it."""
    run = shelf / "stopped"
    server.run(run, disk={"kind": "Killing", "at": 163, "when": "after"})
    (run / ".lock").unlink()
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert any(
        n.startswith("phases/1-medical_dictionary/checkpoint/step-") for n in names
    )
    assert "phases/0-plain_text/adapter/state.safetensors" in names
    return run


def flipped(data):
    """Return the bytes with one bit changed, in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


DAMAGES = {
    "flipped": flipped,
    "halved": lambda d: d[: len(d) // 2],
    "emptied": lambda _: b"",
}

HOW = {"whole": "finished", "stopped": "stopped"}


def every(run):
    """Return every file of a run that is on record: not what plugins write for themselves."""
    files = (p for p in run.rglob("*") if p.is_file() and p.name != "report.html")
    return sorted(p.relative_to(run).as_posix() for p in files)


def damaged(run, copy, name, damage):
    """Copy a run with one file damaged."""
    shutil.copytree(run, copy)
    path = copy / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        "flipped",
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("halved", "emptied")),
    ],
)
@pytest.mark.parametrize("which", ["whole", "stopped"])
def test_every_file_is_found(
    server, whole, stopped, same_end, places, counted, which, damage
):
    """Verification names the file; resume refuses and names it, leaves it out and says so, or has no use for it."""
    run = stopped if which == "stopped" else whole[0]
    names = every(run)
    count = counted(
        "files damaged, found and named", len(names), f"{damage}, of a {HOW[which]} run"
    )
    for name in names:
        copy = next(places)
        path = damaged(run, copy, name, damage)
        found = [f.path for f in audit(copy).findings]
        assert name in found, (name, found)
        answer = server.resume(copy)
        told = [e["text"] for e in answer["told"]]
        named = answer.get("message", "") if answer["code"] else "\n".join(told)
        if (
            str(path) not in named and name not in named
        ):  # then it counts for nothing, and is made anew
            assert name.startswith("phases/1-medical_dictionary/"), name
            same_end(copy, whole[0])
        count.right += 1
        shutil.rmtree(copy)


def test_a_damaged_checkpoint_is_left_out_and_the_end_is_the_same(
    server, stopped, whole, same_end, places
):
    """The one before it is used, or the phase begun anew: told, on record, and the same bits at the end."""
    folder = "phases/1-medical_dictionary/checkpoint"
    steps = sorted(p.name for p in (stopped / folder).iterdir())
    for victims in (steps[-1:], steps):
        run = next(places)
        shutil.copytree(stopped, run)
        for step in victims:
            path = run / folder / step / "optimizer.safetensors"
            path.write_bytes(flipped(path.read_bytes()))
        answer = server.resume(run)
        assert answer["code"] == 0, answer["message"]
        assert sum(
            "is damaged and was left out" in e["text"] for e in answer["told"]
        ) == len(victims)
        same_end(run, whole[0])


def test_a_journal_cut_at_a_line_is_noticed(server, whole, places):
    """Lines that are gone from the end leave a ledger that the journal does not know."""
    run, _ = whole
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for keep in (1, len(lines) // 2, len(lines) - 4):
        copy = next(places)
        shutil.copytree(run, copy)
        (copy / "journal.jsonl").write_bytes(b"".join(lines[:keep]))
        assert not audit(copy).sound
        answer = server.resume(copy)
        assert answer["code"] == 2
        assert "ledger.json" in answer["message"]


def test_nothing_that_the_user_gave_is_changed(server, tmp_path, places):
    """A configuration file and a base that a run reads are the same bytes afterwards, and unlocked."""
    from mgk_core.record.store import folder_digests

    given = tmp_path / "given"
    given.mkdir()
    (given / "my.toml").write_text('extends = "textmodel"\n')
    before = folder_digests(given, given)
    assert server.run(next(places), config=str(given / "my.toml"))["code"] == 0
    assert folder_digests(given, given) == before
