"""``mgk check-plugin``: run the conformance tests that fit what a plugin registers.

A plugin can define how its types are tested, in its plugin module::

    MGK_CHECK = {"adapter:mine": {"rank": 2, "alpha": 3.0}, "gate:mine": {"limit": 4.0}}

Keys ``slot:type`` give the options of that type. Without one the defaults are used, but for small
models (rank 2, alpha 3, every target). Three further keys have functions: ``metric:NAME`` returns a
probe of that metric, ``bundle:TYPE`` the model that a data type is read for, and ``bad:TYPE``
writes a file with a bad row into a directory and returns the options that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import Bundle, PhaseData, Probe, Score
from mgk_core.contract.context import Observer, PhaseContext
from mgk_core.contract.errors import (
    ConfigError,
    InputError,
    MgkError,
    PluginError,
    nearest,
)
from mgk_core.contract.outcome import ByDelta, LossTerm, MergeReport, Proposal, Verdict
from mgk_core.contract.progress import activity
from mgk_core.contract.specs import DeltaSpec, Registered, Slot, Spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import Plugins, load_plugins
from mgk_core.run.api import attach_spec
from mgk_core.testing.adapters import check_adapter
from mgk_core.testing.gates import Row, check_gate, context
from mgk_core.testing.laws import LawResult
from mgk_core.testing.models import check_model
from mgk_core.testing.objectives import check_objective
from mgk_core.testing.observers import check_observer
from mgk_core.testing.optimizers import check_optimizer
from mgk_core.testing.probes import check_evaluator, standard_probes
from mgk_core.testing.readers import check_reader
from mgk_core.testing.recoveries import check_recovery
from mgk_core.testing.retention import check_retention
from mgk_core.testing.rules import check_rule
from mgk_core.testing.small_run import SmallBundle
from mgk_core.testing.transforms import check_transform

SMALL: dict[str, Any] = {"rank": 2, "alpha": 3.0, "targets": ["*"]}
"""Options for adapters that have them: alpha ≠ rank, and every weight that the type can take."""


@frozen(eq=False)
class Checked:
    """The plugin under test among the others, and how its types are to be tested."""

    plugins: Plugins
    name: str
    thorough: bool

    @property
    def hooks(self) -> Hooks:
        """The facade over all plugins."""
        return Hooks(self.plugins)

    @property
    def plugin(self) -> Any:
        """The plugin module."""
        return self.plugins.objects[self.name]

    @property
    def chosen(self) -> Mapping[str, Any]:
        """The options that the plugin defines in ``MGK_CHECK``."""
        found: Mapping[str, Any] = getattr(self.plugin, "MGK_CHECK", {})
        return found

    def own(self, hook: str) -> Callable[..., Any]:
        """Return a caller of the plugin's own implementation of a hook."""

        def call(**arguments: Any) -> Any:
            return self.plugins.call(hook, arguments, self.name)

        return call


Check = Callable[[Checked, Spec, str], Sequence[LawResult]]


def check_plugin(name: str, *, thorough: bool = False) -> list[LawResult]:
    """Run the conformance tests on everything that an installed plugin registers.

    :param thorough: also on models that differ from others in nothing the plugin acts on
    :raises InputError: no such plugin
    :raises PluginError: it could not be loaded
    """
    return check_loaded(load_plugins(), name, thorough=thorough)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: products this small only wait for a second one, up to five times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_loaded(
    plugins: Plugins, name: str, *, thorough: bool = False
) -> list[LawResult]:
    """Do what `check_plugin` does, among plugins that are loaded already."""
    infos = {i.name: i for i in plugins.infos}
    if name not in infos:
        raise InputError(
            f"{name}: no such plugin{nearest(name, infos)}; see 'mgk plugins'"
        )
    if infos[name].error is not None:
        raise PluginError(
            name, f"plugin {name!r} could not be loaded: {infos[name].error}"
        )
    checked = Checked(plugins, name, thorough)
    with one_thread():
        results: list[LawResult] = []
        for claim in [
            c for c in plugins.registry if c.plugin == name and c.slot != "metric"
        ]:
            for type_ in _types(claim, checked.chosen):
                with activity(f"testing {claim.slot} {type_}"):
                    results += _check_type(checked, claim, type_)
        if "mgk_evaluate" in infos[name].hooks:
            results += _evaluators(checked)
    nothing = "it registers no type that there are conformance tests for"
    return results or [LawResult("registers a type", name, None, nothing)]


def _types(claim: Registered, chosen: Mapping[str, Any]) -> list[str]:
    """Return the types to test: of a family (``peft:*``) those that the plugin names in MGK_CHECK."""
    if not claim.type.endswith(":*"):
        return [claim.type]
    begins = f"{claim.slot}:{claim.type[:-1]}"
    return [key.split(":", 1)[1] for key in chosen if key.startswith(begins)] or [
        claim.type
    ]


def _check_type(checked: Checked, claim: Registered, type_: str) -> list[LawResult]:
    subject, check = f"{claim.slot} {type_}", CHECKS.get(claim.slot)
    key = f"{claim.slot}:{type_}"
    if check is None:
        return [_skipped(subject, f"there are no tests for the slot {claim.slot!r}")]
    if type_.endswith("*"):
        return [
            _skipped(subject, "a family of types: name some in the plugin's MGK_CHECK")
        ]
    if claim.slot == "base" and key not in checked.chosen:
        return [
            _skipped(
                subject,
                f"give options of a small one in the plugin's MGK_CHECK[{key!r}]",
            )
        ]
    try:
        spec = _spec(checked, claim, type_)
    except ConfigError as error:
        return [
            _skipped(
                subject, f"give options in the plugin's MGK_CHECK[{key!r}]: {error}"
            )
        ]
    return list(check(checked, spec, subject))


def _skipped(subject: str, why: str) -> LawResult:
    return LawResult("(all)", subject, None, why)


def _spec(checked: Checked, claim: Registered, type_: str, **more: Any) -> Spec:
    slot: Slot = claim.slot
    options = checked.chosen.get(f"{slot}:{type_}")
    if options is None:
        fields = (
            {a.name for a in attrs.fields(claim.cls)} if slot == "adapter" else set()
        )
        options = {key: value for key, value in SMALL.items() if key in fields}
    table = {"type": type_, **options, **more}
    return structure_spec(checked.plugins.registry, slot, table)


def summed(results: Sequence[LawResult], subject: str) -> list[LawResult]:
    """Make one row a law of what was held on several models: broken where one is, with the first reason."""
    found: list[LawResult] = []
    for law in dict.fromkeys(r.law for r in results):
        mine = [r for r in results if r.law == law]
        broken = [r for r in mine if r.ok is False]
        held = [r for r in mine if r.ok]
        if broken:
            more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
            found.append(
                LawResult(
                    law,
                    subject,
                    ok=False,
                    detail=f"{broken[0].subject}: {broken[0].detail}{more}",
                )
            )
        elif held:
            found.append(
                LawResult(
                    law,
                    subject,
                    ok=True,
                    detail=f"on {len(held)} of {len(mine)}" if len(mine) > 1 else "",
                )
            )
        else:
            found.append(LawResult(law, subject, None, mine[0].detail))
    return found


def _adapter(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    def attach(model: nn.Module, name: str) -> Adapter:
        return attach_spec(checked.hooks, model, spec, name)

    return summed(check_adapter(attach, spec.type, thorough=checked.thorough), subject)


@frozen(eq=False)
class Holder:
    """What an optimizer sees of an adapter: its name and its parameters."""

    name: str
    held: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""
        return self.held


def _optimizer(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return checked.hooks.make_optimizer(Holder("kit", parameters), spec)  # type: ignore[arg-type]

    def make_for(adapter: Adapter) -> torch.optim.Optimizer:
        return checked.hooks.make_optimizer(adapter, spec)

    return check_optimizer(make, subject, make_for=make_for)


def _rule(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    def merge(model: nn.Module, adapter: Adapter, proposal: Proposal) -> MergeReport:
        return checked.hooks.merge(model, adapter, proposal, spec)

    if not isinstance(spec, DeltaSpec):
        return summed(check_rule(merge, spec.type), subject)
    found = check_rule(merge, spec.type, change=spec.change)
    return summed(found, subject) + _transform(checked, spec, subject)


def _transform(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    if not isinstance(spec, DeltaSpec):
        return [_skipped(subject, "its class is not a DeltaSpec, so nothing calls it")]
    return check_transform(lambda: ByDelta(spec), subject)


def _gate(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    def judge(ctx: PhaseContext, before: Sequence[Row], after: Row) -> Verdict | None:
        verdicts = checked.hooks.gate(ctx, before, after)
        return verdicts[0] if verdicts else None

    return check_gate(judge, spec, subject)


def _recovery(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    return check_recovery(checked.hooks.recover, spec, subject)


def _observer(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    observers = checked.own("mgk_observers")

    def make(ctx: PhaseContext) -> list[Observer]:
        return [o for answer in observers(ctx=ctx) for o in answer]

    return check_observer(make, spec, subject)


def _retention(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    collected = checked.own("mgk_collect_statistics")
    offered = checked.own("mgk_loss_terms")

    def collect(ctx: PhaseContext) -> dict[str, Tensor]:
        return {k: v for answer in collected(ctx=ctx) for k, v in answer.items()}

    def terms(ctx: PhaseContext) -> dict[str, LossTerm]:
        return {k: v for answer in offered(ctx=ctx) for k, v in answer.items()}

    declared = spec.type in getattr(checked.plugin, "MGK_KEEPS_EXAMPLES", ())
    return check_retention(collect, terms, spec, subject, keeps_examples=declared)


def _loss(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    return check_objective(checked.hooks.make_objective, spec, subject)


def _data(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    claim = checked.plugins.registry.find("data", spec.type)

    def load(bundle: Bundle, options: Mapping[str, Any]) -> PhaseData:
        return checked.hooks.load_data(
            _spec(checked, claim, spec.type, **options), bundle
        )

    bundle, key = (
        checked.chosen.get(f"bundle:{spec.type}", SmallBundle),
        f"data:{spec.type}",
    )
    if key not in checked.chosen:
        try:
            load(bundle(), {})
        except (
            MgkError,
            ImportError,
        ) as error:  # e.g. it needs a file or another model
            return [
                _skipped(
                    subject, f"give options in the plugin's MGK_CHECK[{key!r}]: {error}"
                )
            ]
    bad = checked.chosen.get(f"bad:{spec.type}")
    return check_reader(load, subject, bundle=bundle, bad=bad)


def _base(checked: Checked, spec: Spec, subject: str) -> list[LawResult]:
    return check_model(
        lambda: checked.hooks.build_model(spec, torch.device("cpu")), subject
    )


CHECKS: dict[Slot, Check] = {
    "adapter": _adapter,
    "merge": _rule,
    "transform": _transform,
    "optimizer": _optimizer,
    "gate": _gate,
    "recover": _recovery,
    "observe": _observer,
    "retention": _retention,
    "loss": _loss,
    "data": _data,
    "base": _base,
}


def _evaluators(checked: Checked) -> list[LawResult]:
    """Test the plugin's own ``mgk_evaluate`` on the usual metrics, and on the samples that it gives."""
    ask = checked.own("mgk_evaluate")

    def evaluate(bundle: Bundle, probe: Probe) -> Score | None:
        found: Score | None = ask(ctx=context(Spec(type="kit"), bundle), probe=probe)
        return found

    claimed = {
        c.type
        for c in checked.plugins.registry
        if c.slot == "metric" and c.plugin == checked.name
    }
    probes = [p for p in standard_probes() if p.metric in claimed]
    for key, sample in checked.chosen.items():
        if key.startswith("metric:"):
            probes.append(sample())
    rows: list[LawResult] = []
    for probe in probes:
        rows += check_evaluator(evaluate, probe, f"metric {probe.metric}")
    why = "it answers for none of the usual metrics: give a probe in MGK_CHECK['metric:NAME']"
    return [r for r in rows if r.ok is not None] or [_skipped("mgk_evaluate", why)]
