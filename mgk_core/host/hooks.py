"""One typed method per hook around pluggy, so that callers are type-checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import nn

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import Adapter, may_adapt, state_of
from mgk_core.contract.bundle import (
    Adaptable,
    Bundle,
    HasVocabulary,
    PhaseData,
    Probe,
    Score,
)
from mgk_core.contract.context import Observer, PhaseContext, StepContext, StepFn
from mgk_core.contract.errors import InputError, PluginError
from mgk_core.contract.hookspecs import slot_of
from mgk_core.contract.objective import Objective
from mgk_core.contract.outcome import (
    LossTerm,
    MergeReport,
    Outcome,
    Proposal,
    Recovery,
    Refusal,
    Verdict,
)
from mgk_core.contract.peers import answering
from mgk_core.contract.specs import DeltaSpec, ProbeSpec, Slot, Spec
from mgk_core.host.manager import Plugins, load_plugins

ENGINE = "exact"
"""The merge rule whose plugin merges what a `DeltaSpec` makes of a delta."""


class Hooks:
    """What the core calls instead of pluggy."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def spec(self, slot: Slot, table: Mapping[str, Any]) -> Spec:
        """Read a table that was given in Python; `ConfigError` with every problem in it."""
        return structure_spec(self.plugins.registry, slot, table)

    def build_model(self, spec: Spec, device: torch.device) -> Bundle:
        """Build the base model."""
        found: Bundle = self._owner(
            "mgk_build_model", spec.type, spec=spec, device=device
        )
        if isinstance(found, Adaptable):
            state_of(found.model).adaptable[:] = found.adaptable
        if isinstance(found, HasVocabulary):
            state_of(found.model).vocabulary[:] = [found.vocabulary]
        return found

    def load_data(
        self, spec: Spec, bundle: Bundle, others: Sequence[Spec] = ()
    ) -> PhaseData:
        """Read a phase's data; `InputError` for a probe whose metric nobody registered."""
        found: PhaseData = self._owner(
            "mgk_load_data", spec.type, spec=spec, bundle=bundle, others=others
        )
        wrappers = self._foreign_wrappers("mgk_load_data", spec.type)
        self._check_metrics(found.probes, f"data type {spec.type!r}{wrappers}")
        return found

    def load_probes(
        self, spec: ProbeSpec, name: str, bundle: Bundle
    ) -> tuple[Probe, ...]:
        """Make the probes of one entry of ``probes``, bound to its phase."""
        found: Sequence[Probe] = self._owner(
            "mgk_load_probes", spec.type, spec=spec, name=name, bundle=bundle
        )
        self._check_metrics(found, f"probe type {spec.type!r}")
        when: Any = spec.when
        return tuple(evolve(p, phase=spec.phase, when=when) for p in found)

    def _foreign_wrappers(self, hook: str, type_: str) -> str:
        """Name the plugins that wrap a hook of another plugin's, for messages; empty without any."""
        owner = self.plugins.owner(slot_of(hook) or "data", type_)
        others = [
            p
            for p in self.plugins.call_order(hook, owner)
            if p != owner and not self.plugins.is_own(p)
        ]
        return (
            f", as plugin {' or '.join(map(self.plugins.describe, others))} returns it"
            if others
            else ""
        )

    def _check_metrics(self, probes: Sequence[Probe], origin: str) -> None:
        """Raise `InputError` for a probe whose metric no plugin registered."""
        for probe in probes:
            try:
                self.plugins.owner("metric", probe.metric)
            except InputError as error:
                raise InputError(f"probe {probe.name!r} of {origin}: {error}") from None

    def attach_adapter(self, model: nn.Module, spec: Spec, name: str) -> Adapter:
        """Attach a new adapter to the model."""
        found: Adapter = self._owner(
            "mgk_attach_adapter", spec.type, model=model, spec=spec, name=name
        )
        outside = [weight for weight in found.targets() if not may_adapt(model, weight)]
        if outside:
            found.detach()
            raise self.plugins.fault(
                [self.plugins.owner("adapter", spec.type)],
                "mgk_attach_adapter",
                f"adapter type {spec.type!r} adapts {len(outside)} weights that this base keeps"
                f" frozen ({', '.join(outside[:3])}): it must choose its targets with"
                " mgk_core.model.targets; base.towers = true allows all weights",
            )
        return found

    def init_adapter(self, adapter: Adapter, ctx: PhaseContext) -> None:
        """Let every plugin initialise the adapter."""
        self._everyone("mgk_init_adapter", adapter=adapter, ctx=ctx)

    def make_optimizer(self, adapter: Adapter, spec: Spec) -> torch.optim.Optimizer:
        """Make the optimizer."""
        found: torch.optim.Optimizer = self._owner(
            "mgk_make_optimizer", spec.type, adapter=adapter, spec=spec
        )
        return found

    def make_objective(self, ctx: PhaseContext) -> Objective | None:
        """Make what the phase minimises; None for the base's own loss."""
        hook, type_ = "mgk_make_objective", ctx.phase.loss.type
        owner = self.plugins.owner("loss", type_)
        if owner not in self.plugins.call_order(hook, owner):
            raise self._unanswered(hook, type_)  # forgotten, not the base's own loss
        found: Objective | None = self._call_owner(hook, type_, ctx=ctx)
        return found

    def loss_terms(self, ctx: PhaseContext) -> dict[str, LossTerm]:
        """Collect the loss terms of every plugin; two of one name are an error."""
        terms: dict[str, LossTerm] = {}
        for answer in self._everyone("mgk_loss_terms", ctx=ctx):
            for name, term in answer.items():
                if name in terms:
                    raise InputError(
                        f"phase {ctx.phase.name!r}: two loss terms are named {name!r}"
                    )
                terms[name] = term
        return terms

    def make_step(self, ctx: StepContext) -> StepFn:
        """Make the step function."""
        found: StepFn = self._owner("mgk_make_step", ctx.phase.phase.step.type, ctx=ctx)
        return found

    def observers(self, ctx: PhaseContext) -> list[Observer]:
        """Collect every plugin's observers."""
        answers = self._everyone("mgk_observers", ctx=ctx)
        return [observer for answer in answers for observer in answer]

    def phase_enter(self, ctx: PhaseContext) -> None:
        """Notify every plugin that a phase begins."""
        self._everyone("mgk_phase_enter", ctx=ctx)

    def phase_exit(self, ctx: PhaseContext, outcome: Outcome) -> None:
        """Notify every plugin that a phase has ended."""
        self._everyone("mgk_phase_exit", ctx=ctx, outcome=outcome)

    def recorded(self, run: Path, phase: str) -> None:
        """Let every plugin read the record of a phase, or of the finished run."""
        self._everyone("mgk_recorded", run=run, phase=phase)

    def collect_statistics(self, ctx: PhaseContext) -> dict[str, torch.Tensor]:
        """Gather what plugins keep for later phases; two of one name are an error."""
        kept: dict[str, torch.Tensor] = {}
        for answer in self._everyone("mgk_collect_statistics", ctx=ctx):
            if twice := sorted(kept.keys() & answer.keys()):
                raise InputError(
                    f"phase {ctx.phase.name!r}: two plugins keep statistics named {twice[0]!r};"
                    " begin each name with the plugin's own"
                )
            kept.update(answer)
        return kept

    def evaluate(self, ctx: PhaseContext, probe: Probe) -> Score:
        """Measure one probe; on the untouched base a value that is not finite is an error."""
        found: Score = self._owner("mgk_evaluate", probe.metric, ctx=ctx, probe=probe)
        if not math.isfinite(found.value) and not ctx.scores:
            owner = self.plugins.describe(self.plugins.owner("metric", probe.metric))
            raise InputError(
                f"probe {probe.name!r}: its {probe.metric} on the untouched base is {found.value}"
                f" (measured by plugin {owner}); expected a finite number: look for NaN, infinities"
                " or very large values in the base and in the probe's items"
            )
        return found

    def propose_merge(self, ctx: PhaseContext, start: Proposal) -> Proposal:
        """Ask what to merge; ``start`` where no plugin proposes anything."""
        answers = self._everyone("mgk_propose_merge", ctx=ctx)
        found: Proposal = answers[-1] if answers else start
        return found

    def merging_plugins(self, spec: Spec) -> list[str]:
        """Return the plugins that are not mgk's own and that merge, or wrap the merge, for a rule."""
        rule = ENGINE if isinstance(spec, DeltaSpec) else spec.type
        owner = self.plugins.owner("merge", rule)
        called = self.plugins.call_order("mgk_merge", owner)
        return [plugin for plugin in called if not self.plugins.is_own(plugin)]

    def merge(
        self, model: nn.Module, adapter: Adapter, proposal: Proposal, spec: Spec
    ) -> MergeReport:
        """Fold the adapter in, by the rule of ``spec``; one that only changes deltas, by the engine."""
        rule = ENGINE if isinstance(spec, DeltaSpec) else spec.type
        found: MergeReport = self._owner(
            "mgk_merge",
            rule,
            model=model,
            adapter=adapter,
            proposal=proposal,
            spec=spec,
        )
        return found

    def gate(
        self,
        ctx: PhaseContext,
        before: Sequence[Mapping[str, Score]],
        after: Mapping[str, Score],
    ) -> list[Verdict]:
        """Collect the verdicts of all gates, and a refusal of every score that is not finite."""
        verdicts = self._everyone("mgk_gate", ctx=ctx, before=before, after=after)
        wrong = tuple(
            _not_finite(s) for s in after.values() if not math.isfinite(s.value)
        )
        return [*verdicts, Verdict(accept=False, refusals=wrong)] if wrong else verdicts

    def recover(
        self,
        ctx: PhaseContext,
        refusals: Sequence[Refusal],
        tried: Sequence[Recovery],
        spec: Spec,
    ) -> Recovery | None:
        """Ask one ``recover`` entry what to try; None where it has nothing to offer."""
        found: Recovery | None = self._call_owner(
            "mgk_recover", spec.type, ctx=ctx, refusals=refusals, tried=tried, spec=spec
        )
        return found

    def _owner(self, hook: str, type_: str, **arguments: Any) -> Any:
        """Call a hook for the plugin that registered the type; an answer is required."""
        answer = self._call_owner(hook, type_, **arguments)
        if answer is None:
            raise self._unanswered(hook, type_)
        return answer

    def _unanswered(self, hook: str, type_: str) -> PluginError:
        slot = slot_of(hook)
        assert slot is not None  # noqa: S101 - as in _call_owner
        owner = self.plugins.owner(slot, type_)
        return PluginError(
            owner,
            f"plugin {self.plugins.describe(owner)} registered the {slot} {type_!r} and"
            f" {self._lacking(hook, owner)}",
            hook,
        )

    def _lacking(self, hook: str, owner: str) -> str:
        if owner in self.plugins.call_order(hook, owner):
            return f"returned None from {hook}; expected an answer"
        return f"does not implement {hook}, or without @hookimpl"

    def _call_owner(self, hook: str, type_: str, **arguments: Any) -> Any:
        slot = slot_of(hook)
        assert slot is not None  # noqa: S101 - only hooks that belong to a slot come here
        with answering(self):
            return self.plugins.call(hook, arguments, self.plugins.owner(slot, type_))

    def _everyone(self, hook: str, **arguments: Any) -> list[Any]:
        """Call a hook for every plugin; return the answers that are not None."""
        with answering(self):
            answers = self.plugins.call(hook, arguments)
        return [answer for answer in answers if answer is not None]


def _not_finite(score: Score) -> Refusal:
    reason = f"{score.probe} ({score.metric}) is {score.value}; a merged model must give finite scores"
    return Refusal("finite", reason, score.probe)


@functools.cache
def installed_hooks() -> Hooks:
    """Return the facade of all installed plugins, for work outside of a run; the same each time."""
    return Hooks(load_plugins())
