"""Every hook is documented, and each does what its page says, seen by a plugin that an installed package brings."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mgk_core.contract import hookspecs
from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import Bundle, PhaseData, Score
from mgk_core.contract.outcome import MergeReport, Recovery
from mgk_core.run.runner import run_pipeline

ROOT = Path(__file__).parents[2]
PHASES = ("plain_text", "medical_dictionary", "mcq")
SMALL = {f"phases.{p}.train.steps": 4 for p in PHASES} | {
    "defaults.data.items": 16,
    "run.threads": 1,
}


class Seen:
    """What the recorder saw in one run, by hook."""

    def __init__(self, module):
        self.order = [hook for hook, _ in module.CALLS]
        self.calls = list(module.CALLS)
        self.steps, self.events = list(module.STEPS), list(module.EVENTS)

    def of(self, hook, key=None):
        found = [seen for h, seen in self.calls if h == hook]
        return [seen[key] for seen in found] if key else found


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Install a distribution with the recorder, and run the reference pipeline, its first proposal refused."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).with_name("recorder.py"), site / "mgk_recorder.py")
    info = site / "mgk_recorder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mgk-recorder\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[mgk.plugins]\nrecorder = mgk_recorder\n")
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        settings = SMALL | {
            "defaults.gate": {"min-gain": False},
            "phases.plain_text.gate": {"refuse-once": {}},
        }
        settings |= {"phases.plain_text.recover": {"scale-search": {"scales": [0.5]}}}
        run_pipeline("textmodel", out=site / "run", overrides=settings)
        return Seen(sys.modules["mgk_recorder"])
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("mgk_recorder", None)


@pytest.mark.parametrize("hook", hookspecs.spec_names())
def test_a_hook_has_a_heading_and_a_test(hook):
    """A hook without a documented heading, or without a test of its own, cannot come in."""
    headings = re.findall(
        r"^### (\w+)$", (ROOT / "docs/reference/hooks.md").read_text(), re.MULTILINE
    )
    assert hook in headings, (
        f"docs/reference/hooks.md has no heading '### {hook}'; run: python docs/generate.py"
    )
    wanted = f"def test_hook_{hook.removeprefix('mgk_')}("
    assert any(wanted in p.read_text() for p in (ROOT / "tests").rglob("test_*.py")), (
        f"no {wanted}...) in tests/"
    )


def test_hook_register_specs(seen):
    """It is called once per plugin, before all else; what it registers is configuration from then on."""
    assert seen.order.count("mgk_register_specs") == 1
    assert seen.order[0] == "mgk_register_specs"
    assert (
        seen.of("mgk_register_specs", "registry")[0].find("gate", "refuse-once").plugin
        == "recorder"
    )


def test_hook_build_model(seen):
    """It is called once; the model is in evaluation mode and trains nothing."""
    (call,) = seen.of("mgk_build_model")
    assert (call["spec"].type, call["device"], call["training"]) == (
        "reference",
        torch.device("cpu"),
        False,
    )
    assert isinstance(call["result"], Bundle)


def test_hook_load_data(seen):
    """It is called for every phase before anything is measured."""
    calls = seen.of("mgk_load_data")
    assert [c["spec"].probe for c in calls] == list(PHASES)
    assert all(isinstance(c["result"], PhaseData) for c in calls)
    last = max(i for i, h in enumerate(seen.order) if h == "mgk_load_data")
    assert last < seen.order.index("mgk_evaluate")


def test_hook_attach_adapter(seen):
    """It is called once a phase with the phase's name, on a frozen base; and once before, to learn the targets."""
    calls = seen.of("mgk_attach_adapter")
    assert [c["name"] for c in calls] == ["targets", *PHASES]
    assert all(c["frozen_base"] and isinstance(c["result"], Adapter) for c in calls)


def test_hook_init_adapter(seen):
    """It comes after the attachment and sees the statistics of the phases before."""
    calls = seen.of("mgk_init_adapter")
    assert [list(c["kept"]) for c in calls] == [
        [],
        ["plain_text"],
        ["plain_text", "medical_dictionary"],
    ]
    assert calls[2]["kept"]["medical_dictionary"]["recorder/index"].tolist() == [1.0]
    assert seen.order.index("mgk_attach_adapter") < seen.order.index("mgk_init_adapter")


def test_hook_make_optimizer(seen):
    """It is called once a phase, and before for each distinct pair; its optimizer has the adapter's parameters."""
    for call in seen.of("mgk_make_optimizer"):
        held = [p for g in call["result"].param_groups for p in g["params"]]
        assert [id(p) for p in held] == [id(p) for p in call["adapter"].parameters()]
    names = [c["adapter"].name for c in seen.of("mgk_make_optimizer")]
    assert names == ["targets"] * len(PHASES) + list(PHASES)


def test_hook_make_objective(seen):
    """It is called once a phase with the adapter attached; the plain likelihood needs none."""
    calls = seen.of("mgk_make_objective")
    assert [c["phase"] for c in calls] == list(PHASES)
    assert all(isinstance(c["adapter"], Adapter) for c in calls)
    assert [c["result"] for c in calls] == [None] * len(PHASES)


def test_hook_loss_terms(seen):
    """A term is called once per optimizer step, with the step's number."""
    assert seen.steps == [(p, step) for p in PHASES for step in range(4)]


def test_hook_make_step(seen):
    """It gets the loss terms resolved, by name, and returns something that can be called."""
    calls = seen.of("mgk_make_step")
    assert [c["phase"] for c in calls] == list(PHASES)
    assert all("recorder" in c["terms"] and callable(c["result"]) for c in calls)


def test_hook_observers(seen):
    """Observers are told of steps and evaluations of their phase."""
    kinds = {e["event"] for e in seen.events}
    assert {"step", "evaluation", "merge", "gate"} <= kinds


def test_hook_phase_enter(seen):
    """It is called once a phase, before the adapter is attached."""
    assert seen.of("mgk_phase_enter", "phase") == list(PHASES)
    assert seen.of("mgk_phase_enter", "adapter") == [None] * 3


def test_hook_phase_exit(seen):
    """It is called once a phase with its outcome; what was tried is in it."""
    outcomes = seen.of("mgk_phase_exit", "outcome")
    assert [o.result for o in outcomes] == ["committed"] * 3
    assert [[r.method for r in o.tried] for o in outcomes] == [["scale-search"], [], []]


def test_hook_recorded(seen):
    """It is called when a phase's line of the journal is on disk, and once when the run has finished."""
    assert seen.of("mgk_recorded", "phase") == [*PHASES, ""]
    last = [
        json.loads(text.splitlines()[-1]) for text in seen.of("mgk_recorded", "journal")
    ]
    assert [line.get("phase") for line in last] == [*PHASES, None]
    assert [line["event"] for line in last] == ["phase_exit"] * 3 + ["finished"]


def test_hook_collect_statistics(seen):
    """It is called after each accepted transition, with the weights that later phases target."""
    calls = seen.of("mgk_collect_statistics")
    assert [c["phase"] for c in calls] == list(PHASES)
    assert calls[0]["targets"] == ("layer1.weight", "layer2.weight")


def test_hook_evaluate(seen):
    """Every probe is measured in row 0, for each proposal that was merged, and at no other time."""
    names = seen.of("mgk_evaluate", "probe")
    assert len(names) == 3 * (
        1 + 4
    )  # three probes; row 0, two proposals of phase 0, one of each other phase
    assert all(
        isinstance(s, Score) and s.n == 16 for s in seen.of("mgk_evaluate", "result")
    )


def test_hook_propose_merge(seen):
    """A wrapper sees the proposals of all other plugins; a recovery's own proposal is not asked about."""
    assert seen.of("mgk_propose_merge", "phase") == list(PHASES)


def test_hook_merge(seen):
    """It is called once per proposal, with its scale, and reports every weight."""
    assert [(c["name"], c["scale"]) for c in seen.of("mgk_merge")] == [
        ("plain_text", 1.0), ("plain_text", 0.5), ("medical_dictionary", 1.0), ("mcq", 1.0),
    ]  # fmt: skip
    for report in seen.of("mgk_merge", "result"):
        assert isinstance(report, MergeReport)
        assert [w.name for w in report.weights] == ["layer1.weight", "layer2.weight"]


def test_hook_gate(seen):
    """It is called for every merged proposal with all rows so far; one refusal refuses."""
    assert [(c["phase"], c["before"]) for c in seen.of("mgk_gate")] == [
        ("plain_text", 1), ("plain_text", 1), ("medical_dictionary", 2), ("mcq", 3),
    ]  # fmt: skip


def test_hook_recover(seen):
    """It is called after a refusal, with the reason, for the entry whose turn it is."""
    (call,) = seen.of("mgk_recover")
    assert (call["spec"].type, call["tried"], call["refusals"][0].reason) == (
        "scale-search",
        (),
        "the first one",
    )
    assert isinstance(call["result"], Recovery)
    assert call["result"].proposal.scale == 0.5


def test_the_hooks_of_a_phase_come_in_the_order_that_the_page_draws(seen):
    """From entry to exit of the second phase, each hook once, evaluations aside."""
    first = [i for i, h in enumerate(seen.order) if h == "mgk_phase_enter"][1]
    last = [i for i, h in enumerate(seen.order) if h == "mgk_phase_exit"][1]
    assert [h for h in seen.order[first : last + 1] if h != "mgk_evaluate"] == [
        "mgk_phase_enter", "mgk_attach_adapter", "mgk_init_adapter", "mgk_make_optimizer",
        "mgk_make_objective", "mgk_observers", "mgk_loss_terms", "mgk_make_step", "mgk_propose_merge", "mgk_merge", "mgk_gate", "mgk_collect_statistics",
        "mgk_phase_exit",
    ]  # fmt: skip
