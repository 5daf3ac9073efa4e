"""The plan of a run, against what the run then is."""

import json

import attrs
import pytest
import torch

from mgk_core.config.resolve import load_tree
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import ConfigError
from mgk_core.host.hooks import Hooks
from mgk_core.record.events import Events
from mgk_core.record.journal import Journal
from mgk_core.record.store import Store
from mgk_core.run.setup import open_session, prepare
from mgk_core.tools.plan import _phase, make_plan
from mgk_core.tools.run_summary import look


def plan_of(*overrides, pipeline="textmodel"):
    return make_plan(prepare(load_tree(pipeline, None, ["run.threads=1", *overrides])))


def opened(place):
    """Return a session on the reference pipeline that has written nothing."""
    store = Store(place / "none")
    return open_session(
        prepare(load_tree("textmodel", None, ["run.threads=1"])),
        store,
        Journal(store),
        Events(),
    )


@pytest.fixture(scope="module")
def plan():
    return plan_of()


def test_the_plan_is_what_the_run_does(plan, finished_run):
    """Steps, parameters and data of the plan are those of the run."""
    run = look(finished_run)
    assert (
        [p.steps for p in plan.phases]
        == [p.training.steps for p in run.phases]
        == [60, 60, 125]
    )
    assert [p.trainable for p in plan.phases] == [3584] * 3
    assert plan.parameters == 28_960
    assert [p.examples for p in plan.phases] == [320, 320, 400]
    assert [x.items for p in plan.phases for x in p.probes if x.split == "test"] == [
        256
    ] * 3


def test_a_limit_of_evaluation_is_in_the_plan():
    """The items of a probe are those that the run scores."""
    plan = plan_of("defaults.evaluate.limit=5")
    assert [x.items for p in plan.phases for x in p.probes if x.split == "test"] == [
        5
    ] * 3


def test_the_limit_of_recoveries_is_in_the_plan():
    """A phase with recoveries names them and how often it may try; one without says nothing."""
    plan = plan_of("phases.mcq.recover.keep-apart=true", "run.max_recoveries=4")
    notes = {p.name: " ".join(p.notes) for p in plan.phases}
    assert (
        "keep-apart; at most 4 recoveries in all (run.max_recoveries)" in notes["mcq"]
    )
    assert "recoveries" not in notes["plain_text"]


def test_bytes_of_the_plan_are_the_runs_own(plan, finished_run):
    """Weights and adapters on disk take what was planned, headers aside."""
    model = (finished_run / "model/model.safetensors").stat().st_size
    assert plan.base_bytes == 4 * 28_960
    assert plan.base_bytes <= model <= plan.base_bytes + 2048
    state = (finished_run / "phases/2-mcq/adapter/state.safetensors").stat().st_size
    peft = (
        (finished_run / "phases/2-mcq/adapter/adapter_model.safetensors").stat().st_size
    )
    assert plan.phases[2].disk["adapter"] == 2 * 4 * 3584
    assert (
        plan.phases[2].disk["adapter"]
        <= state + peft
        <= plan.phases[2].disk["adapter"] + 4096
    )


def test_momentum_and_adam_need_what_they_keep():
    """The optimizer's state is counted by asking it: Adam keeps two numbers a parameter, plain SGD none."""
    adam = plan_of(
        "defaults.optimizer.type='adamw'",
        *(
            f"phases.{p}.optimizer.type='adamw'"
            for p in ("plain_text", "medical_dictionary", "mcq")
        ),
    )
    plain = plan_of()
    extra = adam.phases[0].disk["checkpoints"] - plain.phases[0].disk["checkpoints"]
    assert (
        2 * 2 * 4 * 3584 <= extra <= 2 * (2 * 4 * 3584 + 256)
    )  # two checkpoints; a step count per tensor


def test_statistics_are_asked_of_the_method():
    """A retention method says what it leaves; sketched, it leaves less."""
    exact = plan_of("defaults.retention.drift-guard.sketch=0")
    sketched = plan_of("defaults.retention.drift-guard.sketch=16")
    # C and G of layer1 (64 → 128) and layer2 (128 → 128), fp32
    assert exact.phases[0].disk["statistics"] == 4 * (64**2 + 128**2 + 2 * 128**2)
    assert (
        0 < sketched.phases[0].disk["statistics"] < exact.phases[0].disk["statistics"]
    )


def test_hooks_name_their_plugins(plan):
    """Which plugin answers what, and no conflict where there is none."""
    assert (
        plan.hooks["mgk_attach_adapter"][-1:] == ("lora",)
        or "lora" in plan.hooks["mgk_attach_adapter"]
    )
    assert plan.phases[0].plugins["merge"] == "exact (merge)"
    assert plan.conflicts == ()


def test_planning_leaves_the_model_as_it_was_and_writes_nothing(tmp_path, monkeypatch):
    """Adapters come off, no gradient is left, and no file appears."""
    monkeypatch.chdir(tmp_path)
    session = opened(tmp_path)
    before = {n: t.clone() for n, t in base_state_dict(session.bundle.model).items()}
    _phase(session, 0, 0)
    after = base_state_dict(session.bundle.model)
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert not any(p.requires_grad for p in session.bundle.model.parameters())
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_plan_is_plain_data(plan):
    """It can be written as JSON."""
    import attrs

    assert json.loads(json.dumps(attrs.asdict(plan)))["parameters"] == 28_960


def test_keeping_the_best_step_needs_dev_data_and_a_time_to_look(monkeypatch):
    """A setting that would have no effect is refused before anything is trained."""
    with pytest.raises(ConfigError, match=r"train.*keep = \"best\" needs eval_every"):
        plan_of("phases.mcq.train.keep='best'")
    load = Hooks.load_data
    monkeypatch.setattr(Hooks, "load_data", lambda *a: attrs.evolve(load(*a), dev=()))
    with pytest.raises(ConfigError) as caught:
        plan_of(
            "phases.mcq.train.keep='best'",
            "phases.mcq.train.eval_every=2",
            "phases.plain_text.train.eval_every=2",
        )
    where = [p.where for p in caught.value.problems]
    assert where == ["phases.plain_text.train.eval_every", "phases.mcq.train.keep"]
    assert all("needs dev data" in p.message for p in caught.value.problems)
