"""A plugin's fault is found where it happens, and carries that plugin's name: per hook and kind of fault."""

import math
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from mgk_core.contract.bundle import PhaseData, Probe, Score
from mgk_core.contract.context import StepOut
from mgk_core.contract.errors import InputError, MgkError, PluginError
from mgk_core.contract.hookspecs import hookimpl, slot_of, spec_names
from mgk_core.contract.outcome import Proposal, Recovery, Refusal, Verdict
from mgk_core.contract.specs import LossSpec, Spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.host.returned import expected_type

SPEC = Spec(type="demo")
PROBE = Probe("p", "base", "demo", [1, 2], higher_is_better=True)
CTX = types.SimpleNamespace(
    phase=types.SimpleNamespace(
        name="one",
        step=SPEC,
        data=SPEC,
        merge=SPEC,
        loss=SPEC,
        of=lambda cls: (),
        recover=(),
    ),
    specs=lambda cls: (),
    scores=(),
    notes=[],
    base_phase=False,
    history=(),
)
STEP_CTX = types.SimpleNamespace(phase=CTX)
MODEL = nn.Linear(2, 2)
ARGUMENTS = {
    "build_model": (SPEC, torch.device("cpu")),
    "load_data": (SPEC, None),
    "load_probes": (SPEC, "p", None),
    "attach_adapter": (MODEL, SPEC, "one"),
    "init_adapter": (None, CTX),
    "make_optimizer": (None, SPEC),
    "make_objective": (CTX,),
    "loss_terms": (CTX,),
    "make_step": (STEP_CTX,),
    "observers": (CTX,),
    "phase_enter": (CTX,),
    "phase_exit": (CTX, None),
    "recorded": (Path("nowhere"), ""),
    "collect_statistics": (CTX,),
    "evaluate": (CTX, PROBE),
    "propose_merge": (CTX, Proposal()),
    "merge": (MODEL, None, Proposal(), SPEC),
    "gate": (CTX, [], {}),
    "recover": (CTX, [], [], SPEC),
}
FIRST_ARGUMENT = {
    "build_model": "spec", "load_data": "spec", "attach_adapter": "model", "init_adapter": "adapter",
    "make_optimizer": "adapter", "merge": "model", "load_probes": "spec", "recorded": "run",
}  # fmt: skip
RETURNING = [h for h in ARGUMENTS if expected_type(f"mgk_{h}") is not object]


def score(**changes):
    """Return a score that is right for PROBE but for ``changes``."""
    right = {
        "probe": "p", "metric": "demo", "value": 0.5, "n": 2, "stderr": 0.1, "higher_is_better": True,
    }  # fmt: skip
    return Score(**right | changes)


def implementation(hook, do, *, wrapper=False):
    """Return a hook's implementation that takes the hook's first argument and does ``do()``."""
    name = FIRST_ARGUMENT.get(hook, "ctx")
    code = f"def mgk_{hook}({name}):\n    {'yield; ' if wrapper else ''}return do()\n"
    scope = {"do": do}
    exec(code, scope)
    return hookimpl(wrapper=wrapper)(scope[f"mgk_{hook}"])


def hooks_with(hook, do, *, wrapper=False):
    """Return the facade of all installed plugins and one that owns the type ``demo``.

    Where ``do`` is a wrapper's, it is another plugin's, and the owner answers as it should.
    """

    @hookimpl
    def mgk_register_specs(registry):
        slot = slot_of(f"mgk_{hook}")
        if slot == "metric":
            registry.add_metric("demo")
        elif slot is not None:
            registry.add(slot, "demo", LossSpec if slot == "loss" else Spec)

    owner = types.ModuleType("owner_module")
    owner.mgk_register_specs = mgk_register_specs
    demo = types.ModuleType("demo_module")
    plugin = demo if wrapper else owner
    setattr(plugin, f"mgk_{hook}", implementation(hook, do, wrapper=wrapper))
    if wrapper:
        setattr(owner, f"mgk_{hook}", implementation(hook, lambda: None))
    owned = [("demo", owner)] if not wrapper else [("owner", owner), ("demo", demo)]
    return Hooks(
        load_plugins(without=["retention", "report", "trackers"], extra=owned)
    )  # they look into the context


def call(hooks, hook):
    """Call a hook through its typed method."""
    return getattr(hooks, hook)(*ARGUMENTS[hook])


def blamed(hooks, hook):
    """Return the error of a call, after checking that it names plugin and hook."""
    with pytest.raises(PluginError) as caught:
        call(hooks, hook)
    assert caught.value.plugin == "demo"
    assert caught.value.hook == f"mgk_{hook}"
    assert "'demo' (not installed)" not in str(caught.value)
    assert "plugin 'demo'" in str(caught.value)
    return str(caught.value)


def test_every_hook_is_tried():
    """The tables of this file have every hook but the one that registers."""
    assert {f"mgk_{name}" for name in ARGUMENTS} == {*spec_names()} - {
        "mgk_register_specs"
    }


@pytest.mark.parametrize("hook", ARGUMENTS)
@pytest.mark.parametrize("error", [ZeroDivisionError("deep inside"), SystemExit(3)])
def test_what_it_raises_is_its_own(hook, error):
    """Any exception that is not mgk's own kind, an exit too, leaves with the plugin's name on it."""

    def do():
        raise error

    said = blamed(hooks_with(hook, do), hook)
    assert f"raised in mgk_{hook}: {type(error).__name__}" in said


@pytest.mark.parametrize("hook", ARGUMENTS)
@pytest.mark.parametrize("error", [InputError("a bad row"), MemoryError()])
def test_what_a_user_can_fix_leaves_as_it_is(hook, error):
    """mgk's own errors say what to do, and a lack of memory is not the plugin's fault."""

    def do():
        raise error

    with pytest.raises(type(error)) as caught:
        call(hooks_with(hook, do), hook)
    assert caught.value is error


@pytest.mark.parametrize("hook", RETURNING)
def test_an_answer_of_another_type_is_refused(hook):
    """The message has what came and what was expected."""
    said = blamed(hooks_with(hook, lambda: 7), hook)
    assert "returned an int; expected" in said
    assert expected_type(f"mgk_{hook}").__name__ in said


@pytest.mark.parametrize(
    "hook",
    [h for h in RETURNING if slot_of(f"mgk_{h}") not in (None, "recover", "loss")],
)
def test_the_owner_of_a_type_must_answer(hook):
    """None for a type that the plugin registered itself is named, and so is a missing function."""
    assert "returned None" in blamed(hooks_with(hook, lambda: None), hook)
    hooks = hooks_with(hook, lambda: None)
    owner = types.ModuleType("owner_module")
    owner.mgk_register_specs = hooks.plugins.objects["demo"].mgk_register_specs
    assert "does not implement" in blamed(
        Hooks(load_plugins(extra=[("demo", owner)])), hook
    )


@pytest.mark.parametrize("hook", RETURNING)
def test_what_a_wrapper_makes_of_an_answer_is_the_wrappers(hook):
    """A wrong answer of a wrapper is not blamed on the plugin that it wraps."""
    all_hook = slot_of(f"mgk_{hook}") is None
    blamed(hooks_with(hook, lambda: [7] if all_hook else 7, wrapper=True), hook)
    if all_hook:
        assert "a list" in blamed(hooks_with(hook, lambda: 7, wrapper=True), hook)


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_what_a_wrapper_raises_is_the_wrappers(hook):
    """Also where the hook that it wraps belongs to another plugin."""

    def do():
        raise ZeroDivisionError

    blamed(hooks_with(hook, do, wrapper=True), hook)


CONTENT = {
    "a score of another probe": ("evaluate", score(probe="q"), "probe 'q'"),
    "a score of another metric": ("evaluate", score(metric="other"), "metric 'other'"),
    "a score of the other direction": ("evaluate", score(higher_is_better=False), "higher_is_better"),
    "a score that is text": ("evaluate", score(value="good"), "value is 'good'"),
    "a score of no items": ("evaluate", score(n=0), "n is 0"),
    "a score with a negative error": ("evaluate", score(stderr=-1.0), "stderr is -1.0"),
    "a score with fewer items": ("evaluate", score(per_item=(1.0,)), "1 values per_item"),
    "a score with a tensor": ("evaluate", score(extra={"x": torch.ones(1)}), "JSON"),
    "a proposal that half keeps apart": ("propose_merge", Proposal(keep_apart=1), "keep_apart is 1"),
    "a refusal to merge without reason": ("propose_merge", Proposal(refuse=" "), "refuse is ' '"),
    "a transform that is none": ("propose_merge", Proposal(transforms=("x",)), "a str among"),
    "a verdict that is no bool": ("gate", Verdict(accept=math.nan), "accept is nan"),
    "a refusal without reasons": ("gate", Verdict(accept=False), "without a reason"),
    "a refusal with an empty reason": ("gate", Verdict(False, (Refusal("g", ""),)), "reason is ''"),
    "a verdict of both kinds": ("gate", Verdict(True, (Refusal("g", "x"),)), "accepts and has"),
    "refusals that are text": ("gate", Verdict(False, ("no",)), "a str among"),
    "refusals that are nothing": ("gate", Verdict(False, None), "without a reason"),
    "evidence that is a tensor": ("gate", Verdict(False, (Refusal("g", "x", evidence={"d": MODEL}),)), "JSON"),
    "an observer without on_event": ("observers", [object()], "no method on_event"),
    "statistics that are lists": ("collect_statistics", {"x": [1, 2]}, "a list as the statistics 'x'"),
    "statistics without a name": ("collect_statistics", {3: torch.ones(1)}, "the name 3"),
    "a term that is no function": ("loss_terms", {"x": 3}, "an int as the loss term 'x'"),
    "a recovery of an unknown action": ("recover", Recovery("pray", "m"), "action is 'pray'"),
    "a recovery without a name": ("recover", Recovery("stop", ""), "method is ''"),
    "a recovery without its proposal": ("recover", Recovery("propose", "m"), "proposal is None"),
    "a recovery of no steps": ("recover", Recovery("train", "m"), "0 steps"),
    "training data that are none": ("load_data", PhaseData(train=[1]), "train is a list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENT)
def test_an_answer_of_the_right_type_with_wrong_content(kind):
    """Names, metrics, finiteness, booleans and reasons are checked where the hook returns."""
    hook, answer, words = CONTENT[kind]
    assert words in blamed(hooks_with(hook, lambda: answer), hook)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_proposal_by_no_number_is_the_proposers(scale):
    """It cannot be made at all, so the plugin that tried to make it is named."""
    hooks = hooks_with("propose_merge", lambda: Proposal(scale=scale))
    assert f"expected a finite number, got {scale}" in blamed(hooks, "propose_merge")


class Rows:
    """A training set of nothing."""

    digest = "0"

    def __len__(self):
        return 1

    def batch(self, rows):
        return rows


def test_an_unknown_metric_is_an_error_of_the_configuration():
    """A probe whose metric nobody registered is refused when the data is read, with the nearest name."""
    probe = Probe("p", "base", "perplexty", [1], higher_is_better=False)
    data = PhaseData(train=Rows(), probes=(probe,))
    with pytest.raises(
        InputError, match=r"probe 'p'.*'perplexty'; did you mean 'perplexity'"
    ):
        call(hooks_with("load_data", lambda: data), "load_data")


def test_a_score_that_is_not_finite_refuses_after_a_merge():
    """Gate or no gate: a merged model that gives NaN is not committed."""
    after = {"p": score(value=math.nan), "q": score(probe="q")}
    (verdict,) = Hooks(load_plugins()).gate(CTX, [], after)
    assert not verdict.accept
    assert [r.probe for r in verdict.refusals] == ["p"]


def test_a_loss_term_is_checked_at_every_step():
    """The term and its plugin are named for what it returns and raises, not the step that adds it."""
    answers = {
        0: torch.tensor(1.0),
        1: "much",
        2: torch.ones(2),
        3: torch.tensor(1),
        4: None,
    }
    terms = call(
        hooks_with("loss_terms", lambda: {"mine": lambda s: answers[s]}), "loss_terms"
    )
    assert terms["mine"](0) is answers[0]
    for step, words in (
        (1, "str"),
        (2, r"shape \(2,\)"),
        (3, "floating-point"),
        (4, "NoneType"),
    ):
        with pytest.raises(
            PluginError, match=rf"'demo'.*loss term 'mine' returned.*{words}"
        ):
            terms["mine"](step)
    with pytest.raises(
        PluginError, match=r"'demo'.*raised in loss term 'mine': KeyError"
    ):
        terms["mine"](9)


class Observer:
    """Fails at every event, and keeps a state that is not JSON."""

    def on_event(self, event):
        raise event["error"]

    def state_dict(self):
        return {"x": torch.ones(1)}


def test_an_observer_is_named_for_what_it_raises():
    """Whatever is told it; and for a state that cannot be kept."""
    (observer,) = call(hooks_with("observers", lambda: [Observer()]), "observers")
    with pytest.raises(
        PluginError, match=r"'demo'.*observer Observer: ZeroDivisionError"
    ):
        observer.on_event({"error": ZeroDivisionError()})
    with pytest.raises(InputError, match="mine"):
        observer.on_event({"error": InputError("mine")})
    with pytest.raises(
        PluginError, match=r"'demo'.*observer Observer returned a state.*JSON"
    ):
        observer.state_dict()


class Step:
    """A step that reports something else."""

    def __call__(self, micro_batches, step):
        return step or StepOut(0.0, None, None, 1.0, None, 0.1)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_step_is_checked_at_every_call():
    """What it reports is what the loop reads."""
    step = call(hooks_with("make_step", Step), "make_step")
    assert isinstance(step([], 0), StepOut)
    with pytest.raises(
        PluginError, match=r"'demo'.*the step returned int; expected StepOut"
    ):
        step([], 1)


def test_two_plugins_cannot_keep_statistics_of_one_name():
    """The second would overwrite the first in silence."""
    one, two = types.ModuleType("one"), types.ModuleType("two")
    for plugin in (one, two):
        plugin.mgk_collect_statistics = implementation(
            "collect_statistics", lambda: {"x": torch.ones(1)}
        )
    hooks = Hooks(
        load_plugins(without=["retention"], extra=[("one", one), ("two", two)])
    )
    with pytest.raises(InputError, match="two plugins keep statistics named 'x'"):
        call(hooks, "collect_statistics")


def test_only_the_owner_of_a_type_is_called():
    """Another plugin's implementation is not asked, even with tryfirst; its wrapper runs."""
    seen = []

    @hookimpl(tryfirst=True)
    def mgk_make_optimizer(adapter, spec):
        seen.append("greedy")
        return "adam"

    @hookimpl(wrapper=True)
    def wraps(adapter, spec):
        seen.append("wrapper")
        return (yield)

    adapter = types.SimpleNamespace(parameters=lambda: [nn.Parameter(torch.ones(2))])
    greedy, wrapping = types.ModuleType("greedy"), types.ModuleType("wrapping")
    greedy.mgk_make_optimizer, wrapping.mgk_make_optimizer = mgk_make_optimizer, wraps
    hooks = Hooks(load_plugins(extra=[("greedy", greedy), ("wrapping", wrapping)]))
    made = hooks.make_optimizer(
        adapter, hooks.spec("optimizer", {"type": "sgd", "lr": 0.1})
    )
    assert isinstance(made, torch.optim.Optimizer)
    assert seen == ["wrapper"]


def test_a_plugin_that_looks_at_the_type_itself_still_works():
    """`isinstance` in a firstresult hook is not needed, and does no harm."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

    @hookimpl
    def mgk_register_specs(registry):
        registry.add("optimizer", "demo", Spec)

    @hookimpl
    def mgk_make_optimizer(adapter, spec):
        return optimizer if isinstance(spec, Spec) and spec.type == "demo" else None

    demo = types.ModuleType("demo")
    demo.mgk_register_specs, demo.mgk_make_optimizer = (
        mgk_register_specs,
        mgk_make_optimizer,
    )
    assert (
        Hooks(load_plugins(extra=[("demo", demo)])).make_optimizer(None, SPEC)
        is optimizer
    )


def test_a_merge_by_no_number_is_refused():
    """`mgk.merge(scale=nan)` changes nothing."""
    import mgk

    model = nn.Sequential(nn.Linear(4, 4))
    adapter = mgk.attach(model, "lora", rank=2, targets=["0"])
    before = model[0].weight.clone()
    with pytest.raises(MgkError, match="scale: expected a finite number, got nan"):
        mgk.merge(model, adapter, scale=math.nan)
    assert torch.equal(model[0].weight, before)
