"""Plugins that do harm: what each does, when it is caught, and what the error message has in it.

The table of docs/reference/hostile-plugins.md is generated from this one, and
test_faults_hostile.py runs every plugin in it.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

HEAD = """
import math
import torch
from attrs import evolve, frozen
from torch import nn
from mgk_core.contract.bundle import PhaseData, Probe
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_core.contract.outcome import MergeReport, Proposal, Recovery, Refusal, Verdict, WeightReport
from mgk_core.contract.specs import DeltaSpec, LossSpec, Spec
from mgk_core.model.inject import Part
from mgk_core.model.part_adapter import PartAdapter, attach_parts, linear_targets


def weight_of(model, name="layer1"):
    return next(p for n, p in model.named_parameters() if n.endswith(f"{name}.weight"))


def write(model, name="layer1"):
    weight_of(model, name).data.add_(1e-3)


@frozen(kw_only=True)
class Own(Spec):
    "A type of this plugin."
"""


@frozen
class Hostile:
    """One plugin and how it is caught.

    said: what the message has in it, beside the plugin's name and distribution. ends: ``stopped``,
    ``rolled back`` (the phase is refused), or ``warned``: the run ends as it would without the
    plugin. settings: of the run, dots as double underscores.
    """

    name: str
    does: str
    when: str
    said: str
    source: str
    settings: Mapping[str, str] = field(factory=dict)
    ends: str = "stopped"

    @property
    def distribution(self) -> str:
        """Name of its distribution."""
        return f"evil-{self.name}"


def claims(slot: str, cls: str = "Own") -> str:
    """Return the source that registers the type ``evil`` in a slot."""
    return f"""
@hookimpl
def mgk_register_specs(registry): registry.add("{slot}", "evil", {cls})
"""


def observer(event: str, what: str) -> str:
    """Return the source of an observer that does something at one kind of event."""
    return f"""
class Watcher:
    def __init__(self, ctx): self.ctx = ctx
    def on_event(self, event):
        ctx = self.ctx
        if event["event"] == "{event}":
            {what}

@hookimpl
def mgk_observers(ctx): return [Watcher(ctx)]
"""


def adapter(
    part: str = "", cls: str = "", attach: str = "return Evil(name, parts, targets)"
) -> str:
    """Return the source of an adapter of trained deltas, with changes to its part and its class."""
    return f"""
class EvilPart(Part):
    def __init__(self, weight):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(weight))
    def weights(self, module, current):
        return {{"weight": current["weight"] + self.delta}}
{part}

class Evil(PartAdapter):
    pass
{cls}
@frozen(kw_only=True)
class EvilSpec(Spec):
    "An adapter of this plugin."
    dropout: float = 0.0

{claims("adapter", "EvilSpec")}
@hookimpl
def mgk_attach_adapter(model, spec, name):
    targets = linear_targets(model, ("layer1", "layer2"))
    parts = attach_parts(model, name, targets, lambda target: EvilPart(target.parameter.detach()))
    {attach}
"""


def rule(merge: str) -> str:
    """Return the source of a merge rule; ``merge`` is the body of ``do(model, adapter, proposal)``."""
    return f"""
class Undo:
    def __init__(self, model): self.old = {{n: p.detach().clone() for n, p in model.named_parameters()}}; self.model = model
    def restore(self):
        for n, p in self.model.named_parameters(): p.data.copy_(self.old[n])
    def release(self): pass

def report(adapter, exact, undo):
    weights = tuple(
        WeightReport(n, "torch.float32", tuple(t.parameter.shape), 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
        for n, t in adapter.targets().items()
    )
    return MergeReport(adapter.name, "evil", weights, 1.0, 1.0, 0.0, 0.0, exact=exact, undo=undo)

def merged(adapter, factor=1.0):
    for name, target in adapter.targets().items():
        old = target.parameter.detach()
        old.add_(factor * (adapter.merged_weight(name, old.clone()) - old))

{claims("merge")}
@hookimpl
def mgk_merge(model, adapter, proposal, spec):
    undo = Undo(model)
    {merge}
"""


ADAPTER = {"defaults__adapter": '{type = "evil"}'}
MERGE = {"defaults__merge__type": "evil"}
TRANSFORM = {"defaults__transform__evil": "true"}
OPTIMIZER = {
    f"phases__{p}__optimizer": '{type = "evil"}'
    for p in ("plain_text", "medical_dictionary", "mcq")
}
REFUSED = {"phases__plain_text__gate__min-gain": "{to_floor = 1.0}"}
RECOVER = {**REFUSED, "phases__plain_text__recover__evil": "true"}

WEIGHTS = "frozen weights were changed"

CASES = (
    Hostile(
        "zero-exit",
        "zeroes every weight when a phase ends",
        "before the next phase or the model is written",
        WEIGHTS,
        """
@hookimpl
def mgk_phase_exit(ctx, outcome):
    for n, p in ctx.model.named_parameters():
        if n.endswith("weight") and "mgk" not in n: p.data.zero_()
""",
    ),
    Hostile(
        "base-stats",
        "writes to a weight while it collects statistics",
        "before the commit",
        WEIGHTS,
        """
@hookimpl
def mgk_collect_statistics(ctx):
    if not ctx.base_phase: write(ctx.model)
""",
    ),
    Hostile(
        "base-propose",
        "writes to a weight when it proposes a merge",
        "before the merge",
        WEIGHTS,
        """
@hookimpl
def mgk_propose_merge(ctx): write(ctx.model)
""",
    ),
    Hostile(
        "prop-nan",
        "proposes to merge by a scale of NaN",
        "where the proposal is made",
        "expected a finite number, got nan",
        """
@hookimpl
def mgk_propose_merge(ctx): return Proposal(scale=float("nan"))
""",
    ),
    Hostile(
        "score-othername",
        "returns a score of another probe than it was asked for",
        "when the hook returns",
        "a Score of the probe 'another'; it was asked for",
        """
@hookimpl(wrapper=True)
def mgk_evaluate(ctx, probe):
    score = yield
    return evolve(score, probe="another") if score else score
""",
    ),
    Hostile(
        "obs-noevent",
        "offers an observer without on_event",
        "when the hook returns",
        "no method on_event(event)",
        """
@hookimpl
def mgk_observers(ctx): return [object()]
""",
    ),
    Hostile(
        "stats-list",
        "keeps statistics that are lists",
        "when the hook returns",
        "a list as the statistics 'stats-list/x'",
        """
@hookimpl
def mgk_collect_statistics(ctx): return {"stats-list/x": [1, 2]}
""",
    ),
    Hostile(
        "loss-str",
        "adds a loss term that returns text",
        "at the first step",
        "loss term 'evil' returned str",
        """
@hookimpl
def mgk_loss_terms(ctx): return {"evil": lambda step: "x"}
""",
    ),
    Hostile(
        "gate-noreason",
        "refuses without a reason",
        "when the hook returns",
        "refuses without a reason",
        """
@hookimpl
def mgk_gate(ctx, before, after): return Verdict(accept=False, refusals=(), notes=())
""",
    ),
    Hostile(
        "gate-nan",
        "accepts with NaN instead of True",
        "when the hook returns",
        "accept is nan",
        """
@hookimpl
def mgk_gate(ctx, before, after): return Verdict(accept=float("nan"), refusals=(), notes=())
""",
    ),
    Hostile(
        "recover-loop",
        "proposes another merge after every refusal, for ever",
        "after `run.max_recoveries`",
        "20 recoveries were tried",
        claims("recover")
        + """
@hookimpl
def mgk_recover(ctx, refusals, tried, spec):
    return Recovery(action="propose", method="loop", proposal=Proposal(scale=0.001))
""",
        RECOVER,
        ends="rolled back",
    ),
    Hostile(
        "dup-name",
        "takes the entry-point name of a plugin of mgk",
        "when plugins are loaded",
        "its name 'lora' is also that of a plugin of mgk",
        """
@hookimpl
def mgk_register_specs(registry): pass
""",
        ends="warned",
    ),
    Hostile(
        "undecorated",
        "forgets @hookimpl on its gate",
        "when plugins are loaded",
        "mgk_gate has no @hookimpl, so it is never called",
        """
def mgk_gate(ctx, before, after): return Verdict(accept=False)
""",
        ends="warned",
    ),
    Hostile(
        "aa",
        "answers for optimizers that it did not register, first in the alphabet",
        "it is never asked",
        "",
        """
@hookimpl
def mgk_make_optimizer(adapter, spec): raise RuntimeError("asked")
""",
        ends="harmless",
    ),
    Hostile(
        "zz",
        "answers for optimizers that it did not register, last in the alphabet",
        "it is never asked",
        "",
        """
@hookimpl(tryfirst=True)
def mgk_make_optimizer(adapter, spec): raise RuntimeError("asked")
""",
        ends="harmless",
    ),
)
"""The fifteen that have once done harm."""

MORE = (
    Hostile(
        "enter-write",
        "writes to a weight when a phase begins",
        "before training",
        WEIGHTS,
        """
@hookimpl
def mgk_phase_enter(ctx): write(ctx.model)
""",
    ),
    Hostile(
        "last-exit",
        "writes to a weight when the last phase ends",
        "before the model is written",
        WEIGHTS,
        """
@hookimpl
def mgk_phase_exit(ctx, outcome):
    if ctx.phase.name == "mcq": write(ctx.model)
""",
    ),
    Hostile(
        "recorded-write",
        "keeps the model and writes to it when the run is recorded",
        "before the next phase",
        WEIGHTS,
        """
MODELS = []

@hookimpl
def mgk_phase_enter(ctx): MODELS[:] = [ctx.model]

@hookimpl
def mgk_recorded(run, phase): write(MODELS[0])
""",
    ),
    Hostile(
        "gate-event",
        "an observer writes to a weight when the gates have judged",
        "before the commit",
        WEIGHTS,
        observer("gate", "write(ctx.model)"),
        {"defaults__gate": "{max-drop = {absolute = 100.0}}"},
    ),
    Hostile(
        "step-event",
        "an observer writes to a weight while the phase trains",
        "at the next checkpoint",
        WEIGHTS,
        observer("step", "write(ctx.model)"),
    ),
    Hostile(
        "term-write",
        "a loss term writes to a frozen weight",
        "at the next checkpoint",
        WEIGHTS,
        """
@hookimpl
def mgk_loss_terms(ctx):
    def term(step):
        write(ctx.model)
        return torch.zeros(())
    return {"evil": term}
""",
    ),
    Hostile(
        "optimizer-write",
        "an optimizer writes to a frozen weight in its step",
        "at the next checkpoint",
        WEIGHTS,
        claims("optimizer")
        + """
MODELS = []

@hookimpl
def mgk_phase_enter(ctx): MODELS[:] = [ctx.model]

class Greedy(torch.optim.SGD):
    def step(self, closure=None):
        write(MODELS[0])
        return super().step(closure)

@hookimpl
def mgk_make_optimizer(adapter, spec):
    return Greedy(adapter.parameters(), lr=0.01)
""",
        OPTIMIZER,
    ),
    Hostile(
        "adapter-forward",
        "an adapter's forward pass writes to the base",
        "at the next checkpoint",
        WEIGHTS,
        adapter(
            part="""
    def adjust(self, module, args, output):
        if self.training: module.weight.data.add_(1e-3)
        return args[0] @ (module.weight + self.delta).T + module.bias
"""
        ),
        ADAPTER,
    ),
    Hostile(
        "gate-adapter",
        "a gate changes the trained adapter",
        "before the commit",
        WEIGHTS,
        """
@hookimpl
def mgk_gate(ctx, before, after): ctx.adapter.parameters()[0].data.add_(1e-3)
""",
    ),
    Hostile(
        "forward-hook",
        "puts a forward hook on a layer, so that what is scored is not what is saved",
        "before training",
        "the model computes with its code: a forward hook",
        """
@hookimpl
def mgk_phase_enter(ctx):
    ctx.model.layer1.register_forward_hook(lambda module, args, output: output * 1.01)
""",
    ),
    Hostile(
        "own-forward",
        "replaces a module's forward before the merge",
        "before the merge",
        "the model computes with its code: the replaced forward of 'layer1'",
        """
@hookimpl
def mgk_propose_merge(ctx):
    right = ctx.model.layer1.forward
    ctx.model.layer1.forward = lambda *args: right(*args) * 1.01
""",
    ),
    Hostile(
        "new-layer",
        "exchanges a layer for a module of another class",
        "before the commit",
        "the model computes with its code: the class Other of 'layer3'",
        """
class Other(nn.Linear):
    def forward(self, x): return super().forward(x) * 1.01

@hookimpl
def mgk_collect_statistics(ctx):
    if not ctx.base_phase: ctx.model.layer3.__class__ = Other
""",
    ),
    Hostile(
        "init-moves",
        "initialises an adapter so that it moves the outputs",
        "before training",
        "promises identity 'exact' at attach, but the outputs moved",
        """
@hookimpl
def mgk_init_adapter(adapter, ctx):
    for parameter in adapter.parameters(): parameter.data.add_(0.1)
""",
    ),
    Hostile(
        "adapter-identity",
        "promises that attaching changes nothing, and it does",
        "before training",
        "promises identity 'exact' at attach, but the outputs moved",
        adapter(
            part="""
    def weights(self, module, current):
        return {"weight": current["weight"] * 1.01 + self.delta}
"""
        ),
        ADAPTER,
    ),
    Hostile(
        "adapter-trains-base",
        "leaves a weight of the base trainable",
        "before training",
        "left these trainable",
        adapter(
            attach="""weight_of(model, "layer3").requires_grad_(True)
    return Evil(name, parts, targets)"""
        ),
        ADAPTER,
    ),
    Hostile(
        "adapter-name",
        "gives its adapter another name",
        "when the hook returns",
        "an adapter named 'mine'",
        adapter(attach='return Evil("mine", parts, targets)'),
        ADAPTER,
    ),
    Hostile(
        "adapter-tenfold",
        "an adapter's forward pass is ten times what its merge is",
        "after the merge",
        "merged and unmerged outputs differ",
        adapter(
            part="""
    def adjust(self, module, args, output): return output + 10 * (args[0] @ self.delta.T)
"""
        ),
        ADAPTER,
    ),
    Hostile(
        "adapter-nan",
        "an adapter's merged weight is NaN",
        "at the merge",
        "the adapter's delta is not finite",
        adapter(
            cls="""
    def merged_weight(self, name, weight, rows=None): return weight * math.nan
"""
        ),
        ADAPTER,
    ),
    Hostile(
        "adapter-shape",
        "an adapter's merged weight has another shape",
        "at the merge",
        "merged_weight returned shape (23, 12), expected (24, 12)",
        adapter(
            cls="""
    def merged_weight(self, name, weight, rows=None): return weight[:-1]
"""
        ),
        ADAPTER,
    ),
    Hostile(
        "adapter-stays",
        "an adapter does not come off when it is detached",
        "before the run begins",
        "left its part on 'layer1'",
        adapter(
            cls="""
    def detach(self): pass
"""
        ),
        ADAPTER,
    ),
    Hostile(
        "rule-zero",
        "a merge rule says exact=False and zeroes the weights",
        "after the merge",
        "calls its merge not exact and declares no change of the delta",
        rule("""for t in adapter.targets().values(): t.parameter.data.zero_()
    return report(adapter, False, undo)"""),
        MERGE,
    ),
    Hostile(
        "rule-declares",
        "a merge rule declares to merge half of each delta and merges a quarter",
        "after the merge",
        "from the old weight and the delta as the rule declares to change it",
        rule("""merged(adapter, 0.25)
    return evolve(report(adapter, False, undo), change=lambda name, delta: delta / 2)"""),
        MERGE,
    ),
    Hostile(
        "rule-half",
        "a merge rule says exact and merges half",
        "after the merge",
        "from the old weight and the adapter's delta",
        rule("""merged(adapter, 0.5)
    return report(adapter, True, undo)"""),
        MERGE,
    ),
    Hostile(
        "rule-other",
        "a merge rule writes to a weight that the adapter does not target",
        "after the merge",
        WEIGHTS,
        rule("""merged(adapter)
    write(model, "layer3")
    return report(adapter, True, undo)"""),
        MERGE,
    ),
    Hostile(
        "rule-no-undo",
        "a merge rule cannot undo a merge that is refused",
        "after the merge",
        "a MergeReport without undo",
        rule("""merged(adapter)
    return report(adapter, True, None)"""),
        {**MERGE, **REFUSED},
    ),
    Hostile(
        "rule-bad-undo",
        "a merge rule's undo gives other weights than before",
        "after the refusal",
        WEIGHTS,
        rule("""merged(adapter)
    undo.old = {n: t + 1e-3 for n, t in undo.old.items()}
    return report(adapter, True, undo)"""),
        {**MERGE, **REFUSED},
    ),
    Hostile(
        "transform-nan",
        "a transform makes a delta NaN",
        "at the merge",
        "transform 'evil()' made NaN or inf of a delta",
        """
@frozen(kw_only=True)
class Evil(DeltaSpec):
    "NaN."
    def change(self, name, delta): return delta * math.nan
"""
        + claims("transform", "Evil"),
        TRANSFORM,
    ),
    Hostile(
        "transform-shape",
        "a transform gives a delta of another shape",
        "at the merge",
        "transform 'evil()' changed the delta's shape",
        """
@frozen(kw_only=True)
class Evil(DeltaSpec):
    "Half of it."
    def change(self, name, delta): return delta[:-1]
"""
        + claims("transform", "Evil"),
        TRANSFORM,
    ),
    Hostile(
        "gate-drop",
        "wraps the gates and drops their refusals",
        "when the hook returns",
        "verdicts without the refusal of gate 'min-gain'",
        """
@hookimpl(wrapper=True)
def mgk_gate(ctx, before, after):
    yield
    return []
""",
        REFUSED,
    ),
    Hostile(
        "gate-edit",
        "a gate edits the scores that it was given",
        "when it tries",
        "raised in mgk_gate: TypeError",
        """
@hookimpl
def mgk_gate(ctx, before, after):
    for name, score in list(after.items()): after[name] = evolve(score, value=0.0)
""",
    ),
    Hostile(
        "score-fewer",
        "scores fewer items of a probe after training than before",
        "when the hook returns",
        "a Score of 5 items where 6 were measured",
        """
@hookimpl(wrapper=True)
def mgk_evaluate(ctx, probe):
    score = yield
    if ctx.adapter is None: return score
    return evolve(score, n=score.n - 1, per_item=score.per_item[:-1])
""",
    ),
    Hostile(
        "train-mode",
        "leaves the model in training mode, in which dropout would act on scores",
        "never: it is set again before each probe",
        "",
        """
@hookimpl(wrapper=True)
def mgk_evaluate(ctx, probe):
    score = yield
    ctx.model.train()
    return score
""",
        ends="harmless",
    ),
    Hostile(
        "grad-off",
        "switches gradients off",
        "when the hook returns",
        "left torch's gradients switched off",
        """
@hookimpl
def mgk_phase_enter(ctx): torch.set_grad_enabled(False)
""",
    ),
    Hostile(
        "dtype",
        "changes torch's default dtype",
        "when the hook returns",
        "left torch's default dtype set to torch.float64",
        """
@hookimpl
def mgk_phase_enter(ctx): torch.set_default_dtype(torch.float64)
""",
    ),
    Hostile(
        "chdir",
        "changes the working directory",
        "when the hook returns",
        "left the working directory at /",
        """
import os

@hookimpl
def mgk_phase_enter(ctx): os.chdir("/")
""",
    ),
    Hostile(
        "exit-zero",
        "ends the process as if it had succeeded",
        "when it tries",
        "raised in observer Watcher: SystemExit",
        observer("step", "raise SystemExit(0)"),
    ),
    Hostile(
        "event-edit",
        "an observer edits an event before others get it",
        "when it tries",
        "raised in observer Watcher: TypeError",
        observer("step", 'event["loss"] = 0.0'),
    ),
    Hostile(
        "term-nan",
        "a loss term is NaN at every step",
        "after `train.max_bad_steps`",
        "the loss term 'evil' of plugin",
        """
@hookimpl
def mgk_loss_terms(ctx): return {"evil": lambda step: torch.tensor(math.nan)}
""",
    ),
    Hostile(
        "step-none",
        "a wrapper makes the step return nothing",
        "at the first step",
        "the step returned NoneType",
        """
class Nothing:
    def __call__(self, micro_batches, step): return None
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

@hookimpl(wrapper=True)
def mgk_make_step(ctx):
    yield
    return Nothing()
""",
    ),
    Hostile(
        "loss-text",
        "an objective's loss is not an ObjectiveLoss",
        "at the first step",
        "the objective returned float from loss",
        """
@frozen(kw_only=True)
class Loss(LossSpec):
    "A loss of this plugin."

class Text(Objective):
    def __init__(self, ctx): self.ctx = ctx
    def batch(self, rows): return self.ctx.data.train.batch(rows)
    def loss(self, batch): return 1.0

@hookimpl
def mgk_make_objective(ctx): return Text(ctx)
"""
        + claims("loss", "Loss"),
        {"defaults__loss__type": "evil"},
    ),
    Hostile(
        "metric-unknown",
        "reads data with a probe of a metric that nobody measures",
        "when the data is read",
        "unknown metric 'karma'",
        """
@hookimpl(wrapper=True)
def mgk_load_data(spec, bundle, others):
    data = yield
    return evolve(data, probes=(*data.probes, Probe("evil", "", "karma", [1], higher_is_better=True)))
""",
    ),
    Hostile(
        "claims-lora",
        "registers the adapter type `lora` too",
        "when the configuration is read",
        "adapter type 'lora' is claimed by the plugins 'claims-lora' and 'lora'",
        """
@hookimpl
def mgk_register_specs(registry): registry.add("adapter", "lora", Own)
""",
    ),
    Hostile(
        "misspelt",
        "misspells a hook's name",
        "when plugins are loaded",
        "it implements 'mgk_gates', which is not a hook; did you mean 'mgk_gate'",
        """
@hookimpl
def mgk_gates(ctx, before, after): return Verdict(accept=False)
""",
        ends="warned",
    ),
    Hostile(
        "old-api",
        "is written for another version of the hooks",
        "when plugins are loaded",
        "it is written for hook API 99",
        "MGK_API_VERSION = 99\n",
        ends="warned",
    ),
    Hostile(
        "broken-import",
        "cannot be imported",
        "when plugins are loaded",
        "nothing_of_that_name",
        "import nothing_of_that_name\n",
        ends="warned",
    ),
    Hostile(
        "yields-twice",
        "a wrapper yields twice",
        "when the hook returns",
        "yields twice",
        """
@hookimpl(wrapper=True)
def mgk_phase_enter(ctx):
    yield
    yield
""",
    ),
    Hostile(
        "recover-pray",
        "a recovery returns an action that does not exist",
        "when the hook returns",
        "action is 'pray'",
        claims("recover")
        + """
@hookimpl
def mgk_recover(ctx, refusals, tried, spec): return Recovery("pray", "evil")
""",
        RECOVER,
    ),
    Hostile(
        "tamper",
        "overwrites the adapter of a committed phase on disk",
        "when the hook returns",
        "changed files that are on record: phases/0-plain_text/adapter/",
        """
@hookimpl
def mgk_recorded(run, phase):
    if phase == "plain_text":
        for path in run.glob("phases/0-plain_text/adapter/*.safetensors"): path.write_bytes(b"x")
""",
    ),
    Hostile(
        "ledger-edit",
        "rewrites the ledger on disk",
        "when the hook returns",
        "changed files that are on record: ledger.json",
        """
@hookimpl
def mgk_recorded(run, phase):
    if phase == "plain_text": (run / "ledger.json").write_text("{}")
""",
    ),
)
"""Made to find what is not caught."""

ALL = (*CASES, *MORE)

HONEST = Hostile(
    "rule-honest",
    "a merge rule declares to merge half of each delta, and does",
    "",
    "",
    rule("""merged(adapter, 0.5)
    return evolve(report(adapter, False, undo), change=lambda name, delta: delta / 2)"""),
    MERGE,
)
"""Not hostile: what it declares is what it does."""
