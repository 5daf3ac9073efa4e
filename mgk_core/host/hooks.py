"""One typed method per hook around pluggy.

Callers are type-checked, and an exception that a plugin raises leaves with the plugin's and the
hook's name on it, which pluggy does not give.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import Adapter, may_adapt, state_of
from mgk_core.contract.bundle import Adaptable, Bundle, PhaseData, Probe, Score
from mgk_core.contract.context import Observer, PhaseContext, StepContext, StepFn
from mgk_core.contract.errors import InputError, MgkError, PluginError
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
from mgk_core.contract.specs import Slot, Spec
from mgk_core.host.manager import Plugins, load_plugins
from mgk_core.model.device import is_out_of_memory

_RETURNING = (
    "mgk_loss_terms", "mgk_observers", "mgk_propose_merge", "mgk_make_step", "mgk_make_optimizer", "mgk_attach_adapter",
    "mgk_merge", "mgk_load_data", "mgk_build_model",
)  # fmt: skip
"""Hooks whose answers are called later, outside of any hook."""


class Hooks:
    """What the core calls instead of pluggy."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins

    def spec(self, slot: Slot, table: Mapping[str, Any]) -> Spec:
        """Read a table that was given in Python; `ConfigError` with every problem in it."""
        return structure_spec(self.plugins.registry, slot, table)

    def build_model(self, spec: Spec, device: torch.device) -> Bundle:
        """Ask for the base model; `PluginError` where nobody answers."""
        found: Bundle = self._first("mgk_build_model", Bundle, spec.type, spec=spec, device=device)
        if isinstance(found, Adaptable):
            state_of(found.model).adaptable[:] = found.adaptable
        return found

    def load_data(self, spec: Spec, bundle: Bundle) -> PhaseData:
        """Ask for a phase's data."""
        found: PhaseData = self._first(
            "mgk_load_data", PhaseData, spec.type, spec=spec, bundle=bundle
        )
        return found

    def attach_adapter(self, model: nn.Module, spec: Spec, name: str) -> Adapter:
        """Ask for a new adapter on the model."""
        found: Adapter = self._first(
            "mgk_attach_adapter", Adapter, spec.type, model=model, spec=spec, name=name
        )
        outside = [weight for weight in found.targets() if not may_adapt(model, weight)]
        if outside:
            found.detach()
            raise PluginError(
                spec.type,
                f"adapter type {spec.type!r} adapts {len(outside)} weights that this base keeps"
                f" frozen ({', '.join(outside[:3])}): it must choose its targets with"
                " mgk_core.model.targets; base.towers = true allows all weights",
                "mgk_attach_adapter",
            )
        return found

    def init_adapter(self, adapter: Adapter, ctx: PhaseContext) -> None:
        """Let every plugin initialise the adapter."""
        self._call("mgk_init_adapter", adapter=adapter, ctx=ctx)

    def make_optimizer(self, adapter: Adapter, spec: Spec) -> torch.optim.Optimizer:
        """Ask for the optimizer."""
        found: torch.optim.Optimizer = self._first(
            "mgk_make_optimizer", torch.optim.Optimizer, spec.type, adapter=adapter, spec=spec
        )
        return found

    def loss_terms(self, ctx: PhaseContext) -> dict[str, LossTerm]:
        """Collect the loss terms of every plugin; two of one name are an error."""
        terms: dict[str, LossTerm] = {}
        for answer in self._call("mgk_loss_terms", Mapping, ctx=ctx):
            for name, term in answer.items():
                if name in terms:
                    raise InputError(f"phase {ctx.phase.name!r}: two loss terms are named {name!r}")
                terms[name] = term
        return terms

    def make_step(self, ctx: StepContext) -> StepFn:
        """Ask for the step function."""
        found: StepFn = self._first("mgk_make_step", Callable, ctx.phase.phase.step.type, ctx=ctx)
        return found

    def observers(self, ctx: PhaseContext) -> list[Observer]:
        """Collect every plugin's observers."""
        return [o for answer in self._call("mgk_observers", Sequence, ctx=ctx) for o in answer]

    def phase_enter(self, ctx: PhaseContext) -> None:
        """Tell every plugin that a phase begins."""
        self._call("mgk_phase_enter", ctx=ctx)

    def phase_exit(self, ctx: PhaseContext, outcome: Outcome) -> None:
        """Tell every plugin that a phase has ended."""
        self._call("mgk_phase_exit", ctx=ctx, outcome=outcome)

    def recorded(self, run: Path, phase: str) -> None:
        """Let every plugin read the record of a phase, or of the finished run."""
        self._call("mgk_recorded", run=run, phase=phase)

    def collect_statistics(self, ctx: PhaseContext) -> dict[str, torch.Tensor]:
        """Gather what plugins keep for later phases."""
        kept: dict[str, torch.Tensor] = {}
        for answer in self._call("mgk_collect_statistics", Mapping, ctx=ctx):
            kept.update(answer)
        return kept

    def evaluate(self, ctx: PhaseContext, probe: Probe) -> Score:
        """Measure one probe."""
        found: Score = self._first(
            "mgk_evaluate", Score, f"metric {probe.metric}", ctx=ctx, probe=probe
        )
        return found

    def propose_merge(self, ctx: PhaseContext, start: Proposal) -> Proposal:
        """Ask what shall be merged; ``start`` where nobody says anything."""
        answers = self._call("mgk_propose_merge", Proposal, ctx=ctx)
        found: Proposal = answers[-1] if answers else start
        return found

    def merge(
        self, model: nn.Module, adapter: Adapter, proposal: Proposal, spec: Spec
    ) -> MergeReport:
        """Fold the adapter in, by the rule of ``spec``."""
        found: MergeReport = self._first(
            "mgk_merge",
            MergeReport,
            spec.type,
            model=model,
            adapter=adapter,
            proposal=proposal,
            spec=spec,
        )
        return found

    def gate(
        self, ctx: PhaseContext, before: Sequence[Mapping[str, Score]], after: Mapping[str, Score]
    ) -> list[Verdict]:
        """Collect the verdicts of all gates."""
        return self._call("mgk_gate", Verdict, ctx=ctx, before=before, after=after)

    def recover(
        self, ctx: PhaseContext, refusals: Sequence[Refusal], tried: Sequence[Recovery], spec: Spec
    ) -> Recovery | None:
        """Ask one ``recover`` entry what to try."""
        caller = self.plugins.manager.hook.mgk_recover
        found: Recovery | None = self._run(
            "mgk_recover", caller, ctx=ctx, refusals=refusals, tried=tried, spec=spec
        )
        if found is not None:
            self._expect("mgk_recover", Recovery, found)
        return found

    def _first(self, hook: str, expected: Any, asked: str, **kwargs: Any) -> Any:
        answer = self._run(hook, getattr(self.plugins.manager.hook, hook), **kwargs)
        if answer is None:
            raise PluginError(
                "?", f"no plugin answered {hook} for {asked!r}; see 'mgk plugins'", hook
            )
        self._expect(hook, expected, answer)
        return answer

    def _call(self, hook: str, expected: Any = object, **kwargs: Any) -> list[Any]:
        answers = [
            a
            for a in self._run(hook, getattr(self.plugins.manager.hook, hook), **kwargs)
            if a is not None
        ]
        for answer in answers:
            self._expect(hook, expected, answer)
        return answers

    def _expect(self, hook: str, expected: Any, answer: Any) -> None:
        """Refuse an answer of another kind; pluggy does not say whose it is, so those that may be are named."""
        if isinstance(answer, expected):
            return
        impls = getattr(self.plugins.manager.hook, hook).get_hookimpls()
        names = " or ".join(self.plugins.describe(i.plugin_name) for i in reversed(impls))
        said = f"answered {hook} with {type(answer).__name__}; expected {expected.__name__}"
        raise PluginError(
            impls[-1].plugin_name, f"plugin {names} {said}: see the hook's description", hook
        )

    def _run(self, hook: str, caller: Any, **kwargs: Any) -> Any:
        try:
            with answering(self):
                return caller(**kwargs)
        except MgkError:
            raise
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            plugin, inside = self._guilty(hook, error), self.plugins.owner_of(error)
            within = (
                f", inside plugin {self.plugins.describe(inside)}"
                if inside not in (None, plugin)
                else ""
            )
            raise PluginError(
                plugin,
                f"plugin {self.plugins.describe(plugin)} raised in {hook}{within}: {type(error).__name__}: {error}",
                hook,
            ) from error

    def _guilty(self, hook: str, error: BaseException) -> str:
        """Find whose function of this hook stands innermost in the traceback; wrappers stand outside of it."""
        impls = getattr(self.plugins.manager.hook, hook).get_hookimpls()
        codes = {
            i.function.__code__: i.plugin_name for i in impls if hasattr(i.function, "__code__")
        }
        found = [
            codes[f.f_code] for f, _ in traceback.walk_tb(error.__traceback__) if f.f_code in codes
        ]
        return str(found[-1]) if found else self.plugins.owner_of(error) or "?"

    def blamed(self, error: BaseException) -> PluginError | None:
        """Turn what was raised by something that a hook had returned into an error that names whose it is.

        None where no plugin's code had a part in it: then it is a fault of the core.
        """
        plugin = self.plugins.owner_of(error)
        if plugin is None:
            return None
        info = next(i for i in self.plugins.infos if i.name == plugin)
        hooks = [h for h in _RETURNING if h in info.hooks]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return PluginError(
            plugin,
            f"plugin {self.plugins.describe(plugin)} raised in {frame.name} ({frame.filename}:{frame.lineno}), in what it"
            f" returned from {' or '.join(hooks) or 'a hook'}: {type(error).__name__}: {error}",
            hooks[0] if hooks else None,
        )


@functools.cache
def installed_hooks() -> Hooks:
    """Return the facade of all installed plugins, for work outside of a run; the same each time."""
    return Hooks(load_plugins())
