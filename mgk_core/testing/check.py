"""``mgk check-plugin``: hold what a plugin registers to the laws that fit.

A plugin may say how its types shall be tested, in its plugin module::

    MGK_CHECK = {"adapter:mine": {"rank": 2, "alpha": 3.0}, "gate:mine": {"limit": 4.0}}

Keys are ``slot:type``, values the options of that type. Without an entry the defaults are used,
but for small models (rank 2, alpha 3, every target).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import nn

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.bundle import Bundle, Probe, Score
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import ConfigError, InputError, PluginError, nearest
from mgk_core.contract.outcome import Verdict
from mgk_core.contract.specs import Registered, Slot, Spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import Plugins, load_plugins
from mgk_core.run.api import attach_spec
from mgk_core.testing.adapters import check_adapter
from mgk_core.testing.gates import Row, check_gate, context
from mgk_core.testing.laws import LawResult
from mgk_core.testing.optimizers import check_optimizer
from mgk_core.testing.probes import check_evaluator, standard_probes
from mgk_core.testing.rules import check_rule

SMALL: dict[str, Any] = {"rank": 2, "alpha": 3.0, "targets": ["*"]}
"""Options for adapters that have them: alpha ≠ rank, and every weight that the type can take."""

Check = Callable[[Hooks, Spec, str], Sequence[LawResult]]


def check_plugin(name: str) -> list[LawResult]:
    """Hold an installed plugin to the laws of everything that it registers.

    :raises InputError: no such plugin
    :raises PluginError: it could not be loaded
    """
    return check_loaded(load_plugins(), name)


def check_loaded(plugins: Plugins, name: str) -> list[LawResult]:
    """Do what `check_plugin` does, among plugins that are loaded already."""
    infos = {i.name: i for i in plugins.infos}
    if name not in infos:
        raise InputError(f"{name}: no such plugin{nearest(name, infos)}; see 'mgk plugins'")
    if infos[name].error is not None:
        raise PluginError(name, f"plugin {name!r} could not be loaded: {infos[name].error}")
    hooks = Hooks(plugins)
    chosen: Mapping[str, Mapping[str, Any]] = getattr(plugins.objects[name], "MGK_CHECK", {})
    results: list[LawResult] = []
    for claim in [c for c in plugins.registry if c.plugin == name and c.slot != "metric"]:
        for type_ in _types(claim, chosen):
            results += _check_type(hooks, claim, type_, chosen)
    if "mgk_evaluate" in infos[name].hooks:
        results += _evaluators(plugins, name)
    return results or [
        LawResult("registers a type", name, None, "it registers no type that the kit has laws for")
    ]


def _types(claim: Registered, chosen: Mapping[str, Any]) -> list[str]:
    """Return the types to test: of a family (``peft:*``) those that the plugin names in MGK_CHECK."""
    if not claim.type.endswith(":*"):
        return [claim.type]
    begins = f"{claim.slot}:{claim.type[:-1]}"
    return [key.split(":", 1)[1] for key in chosen if key.startswith(begins)] or [claim.type]


def _check_type(
    hooks: Hooks, claim: Registered, type_: str, chosen: Mapping[str, Any]
) -> list[LawResult]:
    subject, check = f"{claim.slot} {type_}", CHECKS.get(claim.slot)
    if check is None:
        return [
            LawResult("(none)", subject, None, f"the kit has no laws for the slot {claim.slot!r}")
        ]
    if type_.endswith("*"):
        return [
            LawResult(
                "(all)",
                subject,
                None,
                "a family of types: name some of them in the plugin's MGK_CHECK",
            )
        ]
    try:
        spec = _spec(hooks, claim, type_, chosen)
    except ConfigError as error:
        key = f"{claim.slot}:{type_}"
        return [
            LawResult(
                "(all)", subject, None, f"say options in the plugin's MGK_CHECK[{key!r}]: {error}"
            )
        ]
    return list(check(hooks, spec, subject))


def _spec(hooks: Hooks, claim: Registered, type_: str, chosen: Mapping[str, Any]) -> Spec:
    slot: Slot = claim.slot
    options = chosen.get(f"{slot}:{type_}")
    if options is None:
        fields = {a.name for a in attrs.fields(claim.cls)} if slot == "adapter" else set()
        options = {key: value for key, value in SMALL.items() if key in fields}
    return structure_spec(hooks.plugins.registry, slot, {"type": type_, **options})


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
                    law, subject, ok=False, detail=f"{broken[0].subject}: {broken[0].detail}{more}"
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


def _adapter(hooks: Hooks, spec: Spec, subject: str) -> list[LawResult]:
    return summed(
        check_adapter(lambda model, name: attach_spec(hooks, model, spec, name), spec.type), subject
    )


@frozen(eq=False)
class Holder:
    """What an optimizer sees of an adapter: its name and its parameters."""

    name: str
    held: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""
        return self.held


def _optimizer(hooks: Hooks, spec: Spec, subject: str) -> list[LawResult]:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return hooks.make_optimizer(Holder("kit", parameters), spec)  # type: ignore[arg-type]

    return check_optimizer(make, subject)


def _rule(hooks: Hooks, spec: Spec, subject: str) -> list[LawResult]:
    found = check_rule(
        lambda model, adapter, proposal: hooks.merge(model, adapter, proposal, spec), spec.type
    )
    return summed(found, subject)


def _gate(hooks: Hooks, spec: Spec, subject: str) -> list[LawResult]:
    def judge(ctx: PhaseContext, before: Sequence[Row], after: Row) -> Verdict | None:
        verdicts = hooks.gate(ctx, before, after)
        return verdicts[0] if verdicts else None

    return check_gate(judge, spec, subject)


CHECKS: dict[Slot, Check] = {
    "adapter": _adapter,
    "merge": _rule,
    "optimizer": _optimizer,
    "gate": _gate,
}


def _evaluators(plugins: Plugins, name: str) -> list[LawResult]:
    """Hold the plugin's own ``mgk_evaluate`` to its laws, for the usual metrics that it answers for."""
    own = {c.type for c in plugins.registry if c.slot == "metric" and c.plugin == name}

    def evaluate(bundle: Bundle, probe: Probe) -> Score | None:
        asked = {"ctx": context(Spec(type="kit"), bundle), "probe": probe}
        found: Score | None = plugins.call("mgk_evaluate", asked, name)
        return found

    rows = [
        r
        for probe in standard_probes()
        if probe.metric in own
        for r in check_evaluator(evaluate, probe, f"metric {probe.metric}")
    ]
    answered = [r for r in rows if r.ok is not None]
    nothing = LawResult(
        "(all)",
        "mgk_evaluate",
        None,
        "it answers for none of the metrics that the kit has probes for",
    )
    return answered or [nothing]
