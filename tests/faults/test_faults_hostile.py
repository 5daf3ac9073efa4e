"""Every plugin of the table of hostile plugins, in a run: caught, named, and nothing wrong is committed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from mgk_core.contract.errors import MgkError
from mgk_core.record.ledger import read_ledger

TABLE = runpy.run_path(str(Path(__file__).with_name("hostile.py")))
CODES = {"stopped": {2, 3}, "rolled back": {1}, "warned": {0}, "harmless": {0}}


@pytest.fixture
def installed(tmp_path):
    """Install a plugin of the table, as a distribution of its own, below a folder for ``sys.path``."""

    def install(case):
        module = f"evil_{case.name.replace('-', '_')}"
        info = tmp_path / f"{module}-0.1.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {case.distribution}\nVersion: 0.1\n"
        (info / "METADATA").write_text(metadata)
        entry = "lora" if case.name == "dup-name" else case.name
        (info / "entry_points.txt").write_text(f"[mgk.plugins]\n{entry} = {module}\n")
        (tmp_path / f"{module}.py").write_text(TABLE["HEAD"] + case.source)
        return tmp_path

    return install


@pytest.mark.parametrize("case", TABLE["ALL"], ids=lambda case: case.name)
def test_a_hostile_plugin_is_caught(server, whole, places, installed, case):
    """What is said names plugin and distribution; nothing wrong is in the ledger, and no model is saved."""
    run = next(places)
    answer = server.run(run, path=[installed(case)], settings=case.settings)
    assert answer["code"] in CODES[case.ends], answer
    if case.ends in ("warned", "harmless"):
        notes = " ".join(event["text"] for event in answer["told"])
        assert case.said in notes
        assert (case.distribution in notes) == (case.ends == "warned")
        assert answer["ledger"] == whole[1]["ledger"]  # the weights of a run without it
        return
    assert case.said in answer["message"]
    if case.ends == "stopped":
        named = case.distribution if case.name != "claims-lora" else case.name
        assert named in answer["message"]
    assert_nothing_wrong_is_kept(run, whole[0])


def assert_nothing_wrong_is_kept(run, reference):
    """Assert that what is committed is what a run without the plugin committed, and that it is resumable."""
    assert not (run / "model").exists()
    if not (run / "ledger.json").exists():
        return
    try:
        found = read_ledger(run)
    except MgkError:
        return  # damaged by the plugin: found when it is read
    right = {entry.phase: entry for entry in read_ledger(reference).phases}
    for entry in found.phases:
        if entry.result == "committed":
            assert entry.merged == right[entry.phase].merged
        else:
            assert (entry.result, entry.merged) == ("rolled_back", entry.base)


def test_a_rule_that_does_what_it_declares_is_committed(server, places, installed):
    """Merged weights are compared with the declared change, not with the unmerged outputs."""
    run, case = next(places), TABLE["HONEST"]
    answer = server.run(run, path=[installed(case)], settings=case.settings)
    assert answer["code"] == 0, answer
    entries = read_ledger(run).phases
    assert [(e.result, e.exact) for e in entries] == [("committed", False)] * 3


def test_there_are_enough_of_them():
    """The fifteen that once did harm, and thirty more at least; no name twice."""
    assert len(TABLE["CASES"]) == 15
    assert len(TABLE["MORE"]) >= 30
    names = [case.name for case in TABLE["ALL"]]
    assert len(set(names)) == len(names)
