"""The hooks of one HOOK_API_VERSION stay callable: nothing that a plugin may rely on is removed or renamed.

`hook_api.json` is the snapshot: hook → its arguments and what it returns. Additions are compatible and do not fail; after
a release, `python tests/contract/test_hook_signatures.py` takes a new snapshot.
"""

import inspect
import json
from pathlib import Path

import pytest

from mgk_core.contract import hookspecs

SNAPSHOT = Path(__file__).with_name("hook_api.json")


def signatures():
    """Return hook → {"arguments": {name: annotation}, "returns": annotation}."""
    found = {}
    for name in hookspecs.spec_names():
        signature = inspect.signature(getattr(hookspecs, name))
        arguments = {k: p.annotation for k, p in signature.parameters.items()}
        found[name] = {"arguments": arguments, "returns": signature.return_annotation}
    return found


RECORDED = json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_the_snapshot_is_of_this_version():
    """Whoever raises the version takes a new snapshot with it."""
    assert RECORDED["version"] == hookspecs.HOOK_API_VERSION


@pytest.mark.parametrize("hook", RECORDED["hooks"])
def test_a_hook_keeps_its_arguments_and_its_answer(hook):
    """A plugin written against the snapshot is still called with what it names, and may answer as it did."""
    before, now = RECORDED["hooks"][hook], signatures().get(hook)
    assert now is not None, (
        f"{hook} is gone: that needs HOOK_API_VERSION + 1 and a migration guide"
    )
    assert before["returns"] == now["returns"]
    kept = {k: now["arguments"].get(k) for k in before["arguments"]}
    assert kept == before["arguments"]


if __name__ == "__main__":
    content = {"version": hookspecs.HOOK_API_VERSION, "hooks": signatures()}
    SNAPSHOT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
