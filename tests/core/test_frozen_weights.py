"""A plugin that writes to weights is found where it happens and named; nothing wrong is committed or saved."""

import importlib
import itertools
import sys
from pathlib import Path

import pytest
import torch

import mgk
from mgk_core.contract.errors import GateRefused, InputError, MgkError, PluginError
from mgk_core.contract.files import read_tensors
from mgk_core.model.digest import tensors_digest
from mgk_core.record.ledger import read_ledger
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.tools.verify_run import audit, audit_weights

SMALL = {
    "phases.plain_text.train.steps": 4,
    "phases.plain_text.optimizer.lr": 4e-3,
    "defaults.data.items": 24,
    "defaults.gate.min-gain": False,
    "run.threads": 1,
}
ALWAYS_REFUSED = {"phases.plain_text.gate": {"min-gain": {"to_floor": 1.0}}}

HARM = """
import torch
from attrs import frozen
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.contract.outcome import Proposal, Recovery
from mgk_core.contract.specs import Spec

def harm(model):
    weights = [p for n, p in model.named_parameters() if n.endswith("layer1.weight")]
    weights[0].data.add_(1e-3)
"""

HOOKS = {
    "mgk_phase_enter": "def mgk_phase_enter(ctx): harm(ctx.model)",
    "mgk_init_adapter": "def mgk_init_adapter(adapter, ctx): harm(ctx.model)",
    "mgk_loss_terms": "def mgk_loss_terms(ctx): harm(ctx.model)",
    "mgk_propose_merge": "def mgk_propose_merge(ctx): harm(ctx.model)",
    "mgk_gate": "def mgk_gate(ctx, before, after): harm(ctx.model)",
    "mgk_collect_statistics": "def mgk_collect_statistics(ctx):\n    if not ctx.base_phase: harm(ctx.model)",
    "mgk_phase_exit": "def mgk_phase_exit(ctx, outcome): harm(ctx.model)",
    "mgk_evaluate": "def mgk_evaluate(ctx, probe):\n    if ctx.adapter is not None: harm(ctx.model)\n    return (yield)",
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a module as plugin ``zz-harm`` for the rest of the test."""
    numbers = itertools.count()

    def install(body):
        name = f"zz_harm_{next(numbers)}"
        folder = tmp_path / name
        info = folder / "zz_harm-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: zz-harm\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[mgk.plugins]\nzz-harm = {name}\n")
        (folder / f"{name}.py").write_text(HARM + body)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        return name

    yield install
    for name in [n for n in sys.modules if n.startswith("zz_harm_")]:
        del sys.modules[name]


ONE = {"phases.medical_dictionary": False, "phases.mcq": False}


@pytest.fixture
def small(tmp_path):
    """Run a pipeline of one short phase; further settings by keyword."""

    def run(**settings):
        overrides = SMALL | ONE | {k.replace("__", "."): v for k, v in settings.items()}
        return run_pipeline("textmodel", out=tmp_path / "run", overrides=overrides)

    return run


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Return the digest of the final weights of a run without any harmful plugin."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run_pipeline("textmodel", out=out, overrides=SMALL | ONE).ledger.head


def named(error, hook):
    """Check that an error names the plugin, its distribution and the hook, and no adapter."""
    assert error.plugin == "zz-harm"
    assert f"'zz-harm' (zz-harm 1.2) in {hook}" in str(error)
    assert "layer1.weight" in str(error)
    assert "merged_weight" not in str(error)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_writes_to_the_base_is_named(head, small, plugin, tmp_path, hook):
    """The plugin and the hook are in the error; without it the run goes on to the right weights."""
    wrapper = "yield" in HOOKS[hook]
    plugin(f"@hookimpl(wrapper={wrapper})\n{HOOKS[hook]}\n")
    with pytest.raises(PluginError) as caught:
        small()
    named(caught.value, hook)
    run = tmp_path / "run"
    assert not (run / "model").exists()
    committed = [p.phase for p in read_ledger(run).phases]
    assert committed == (["plain_text"] if hook == "mgk_phase_exit" else [])
    result = resume_run(run, without=["zz-harm"], accept=["plugin.zz-harm"])
    assert result.ledger.head == head


@pytest.mark.parametrize("event", ["step", "evaluation", "merge", "gate"])
def test_an_observer_that_writes_to_the_base_is_named(small, plugin, tmp_path, event):
    """An observer acts outside of any hook call, on any event; its plugin is named all the same."""
    body = f"""
class Observer:
    def __init__(self, model):
        self.model = model
    def on_event(self, event):
        if event["event"] == "{event}":
            harm(self.model)

@hookimpl
def mgk_observers(ctx):
    return [Observer(ctx.model)]
"""
    plugin(body)
    gate = {"phases.plain_text.gate": {"max-drop": {"absolute": 100.0}}}
    with pytest.raises(PluginError) as caught:
        small(**gate)
    named(caught.value, "mgk_observers")
    assert read_ledger(tmp_path / "run").phases == []


def test_a_recovery_that_writes_to_the_base_is_named(small, plugin, tmp_path):
    """Between undoing a refused merge and trying another one only the recovery runs."""
    body = """
@frozen(kw_only=True)
class Never(Spec):
    "Writes to the base."

@hookimpl
def mgk_register_specs(registry): registry.add("recover", "never", Never)

@hookimpl
def mgk_recover(ctx, refusals, tried, spec):
    if isinstance(spec, Never): harm(ctx.model)
"""
    plugin(body)
    with pytest.raises(PluginError) as caught:
        small(**ALWAYS_REFUSED, **{"phases.plain_text.recover": {"never": True}})
    named(caught.value, "mgk_recover")
    assert read_ledger(tmp_path / "run").phases == []


def test_a_hook_that_writes_to_the_adapter_after_training_is_named(
    small, plugin, tmp_path
):
    """What is merged and kept on disk is what was trained."""
    body = """
@hookimpl
def mgk_gate(ctx, before, after):
    ctx.adapter.parameters()[0].data.add_(1e-3)
"""
    plugin(body)
    with pytest.raises(
        PluginError, match=r"the adapter's .*'zz-harm' \(zz-harm 1.2\) in mgk_gate"
    ):
        small()
    assert read_ledger(tmp_path / "run").phases == []


def test_the_baseline_is_not_kept_where_scoring_changed_the_base(
    small, plugin, tmp_path
):
    """Scores of a changed base are not written, so that a resumed run cannot take them for the base's."""
    plugin(
        "@hookimpl(wrapper=True)\ndef mgk_evaluate(ctx, probe):\n    harm(ctx.model)\n    return (yield)\n"
    )
    with pytest.raises(PluginError) as caught:
        small()
    named(caught.value, "mgk_evaluate")
    assert not (tmp_path / "run/base/scores.json").exists()


def test_a_model_that_is_saved_wrong_is_refused(small, plugin, tmp_path, monkeypatch):
    """model/ is read back before it gets its name: a tensor that is not the merged one refuses it."""
    from mgk_textmodel.bundle import ReferenceBundle

    right = ReferenceBundle.save

    def wrong(self, directory):
        with torch.no_grad():
            next(iter(self.model.parameters())).zero_()
        right(self, directory)

    monkeypatch.setattr(ReferenceBundle, "save", wrong)
    with pytest.raises(MgkError, match="weight differs from the ledger's digest"):
        small()
    assert not (tmp_path / "run/model").exists()
    monkeypatch.setattr(ReferenceBundle, "save", right)
    result = resume_run(tmp_path / "run")
    tensors = read_tensors(tmp_path / "run/model/model.safetensors")
    assert tensors_digest(tensors) == result.ledger.head == result.ledger.saved
    assert audit(tmp_path / "run").sound


def test_verification_compares_the_model_with_the_ledgers_head(small, tmp_path):
    """A model/ of other weights is found, even by one whose file digests were brought in line."""
    from mgk_core.record.commit import commit
    from mgk_core.record.journal import open_journal
    from mgk_core.record.store import Store, folder_digests

    small()
    run = tmp_path / "run"
    store = Store(run)
    path = run / "model/model.safetensors"
    tensors = read_tensors(path)
    store.write_tensors(
        "model/model.safetensors", {k: v * 0 for k, v in tensors.items()}
    )
    ledger = read_ledger(run)
    ledger.files |= folder_digests(run, run / "model")
    commit(store, open_journal(store), ledger, "finished")
    found = audit(run)
    assert [(f.path, f.harmless) for f in found.findings] == [("model", False)]
    deep = audit(run)
    audit_weights(deep)
    assert {f.path for f in deep.findings} == {"model"}
    assert len(deep.findings) > 1  # each weight by its name


def test_a_recovery_that_never_gives_up_ends_in_a_refusal(small, plugin, tmp_path):
    """run.max_recoveries bounds what a phase tries; the refusal says so, and the phase is rolled back."""
    body = """
@frozen(kw_only=True)
class Loop(Spec):
    "Never ends."

@hookimpl
def mgk_register_specs(registry): registry.add("recover", "loop", Loop)

@hookimpl
def mgk_recover(ctx, refusals, tried, spec):
    if isinstance(spec, Loop):
        return Recovery(action="propose", method="loop", proposal=Proposal(scale=0.001))
"""
    plugin(body)
    settings = ALWAYS_REFUSED | {"phases.plain_text.recover": {"loop": True}}
    with pytest.raises(
        GateRefused, match=r"3 recoveries were tried.*run\.max_recoveries"
    ):
        small(**settings, run__max_recoveries=3)
    entry = read_ledger(tmp_path / "run").phases[0]
    assert entry.result == "rolled_back"
    assert [a.method for a in entry.attempts] == ["loop"] * 3 + ["roll back"]


def test_a_proposal_that_is_not_finite_is_its_plugins_error(small, plugin, tmp_path):
    """A scale of NaN is refused where it is made."""
    plugin(
        "@hookimpl\ndef mgk_propose_merge(ctx): return Proposal(scale=float('nan'))\n"
    )
    with pytest.raises(
        PluginError, match=r"'zz-harm' .* in mgk_propose_merge.*finite number"
    ):
        small()
    assert read_ledger(tmp_path / "run").phases == []


def test_a_scale_that_is_not_finite_is_refused_by_the_library():
    """Before anything of the model is touched."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 5))
    adapter = mgk.attach(model, "lora", rank=2, alpha=3.0, targets=["0"])
    with pytest.raises(InputError, match="scale: expected a finite number"):
        mgk.merge(model, adapter, scale=float("nan"))


def test_plugins_have_a_folder_of_their_own_for_files(small, plugin, tmp_path):
    """ctx.directory is there for every hook; ctx.files may be written to at any time, off the record."""
    body = """
@hookimpl
def mgk_phase_enter(ctx):
    assert ctx.directory.is_dir()
    (ctx.files / "log.txt").write_text("begun\\n")

@hookimpl(wrapper=True)
def mgk_evaluate(ctx, probe):
    assert ctx.directory.is_dir()
    return (yield)

@hookimpl
def mgk_phase_exit(ctx, outcome):
    with (ctx.files / "log.txt").open("a") as file:
        file.write("ended\\n")
"""
    plugin(body)
    result = small()
    log = Path(tmp_path / "run/phases/0-plain_text/files/log.txt")
    assert log.read_text() == "begun\nended\n"
    assert not any(
        "files" in Path(name).parts for name in result.ledger.phases[0].files
    )
    log.write_text("changed later")
    assert audit(tmp_path / "run").findings == []


def test_a_plugin_that_breaks_the_adapters_promise_is_named(small, plugin):
    """An initialisation that moves the outputs is its plugin's fault, not that of the adapter's type."""
    plugin(
        "@hookimpl\ndef mgk_init_adapter(adapter, ctx):\n"
        "    for parameter in adapter.parameters(): parameter.data.add_(0.1)\n"
    )
    with pytest.raises(
        PluginError, match=r"'zz-harm' \(zz-harm 1.2\).*promises identity"
    ) as caught:
        small()
    assert (caught.value.plugin, caught.value.hook) == ("zz-harm", "mgk_init_adapter")
