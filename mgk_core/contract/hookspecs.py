"""Every hook of mgk: signature and contract. Nothing here runs.

A *firstresult* hook is called for the plugin alone that registered the type in question. An *all*
hook is called for every plugin, in the order of `mgk plugins`. Wrappers of other plugins run around
both. The return annotation is what the host checks an answer against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.bundle import Bundle, PhaseData, Probe, Score
    from mgk_core.contract.context import Observer, PhaseContext, StepContext, StepFn
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
    from mgk_core.contract.specs import ProbeSpec, Slot, Spec, SpecRegistry

PROJECT = "mgk"
HOOK_API_VERSION = 1
"""Version of the hooks. A plugin that was written for another one is refused."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator that marks a function as a hook's implementation; without it the function is never called."""


def _owner_only(slot: Slot) -> Callable[[Any], Any]:
    """Mark a hook that is called for the plugin alone that registered the type in ``slot``."""

    def mark(function: Any) -> Any:
        function.mgk_slot = slot
        return hookspec(firstresult=True)(function)

    return mark


def _everyone(*, acts: bool) -> Callable[[Any], Any]:
    """Mark a hook that is called for every plugin.

    acts: it may change what a run computes, also where the configuration names no type of its plugin.
    """

    def mark(function: Any) -> Any:
        function.mgk_acts = acts
        return hookspec(function)

    return mark


@hookspec(historic=True)
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Register the plugin's own configuration classes.

    Called once per plugin when it is loaded, before any configuration is read.

    :param registry: call ``registry.add(slot, type, cls)`` for each type that the plugin answers for,
        and ``registry.add_metric(name)`` for each metric that its ``mgk_evaluate`` measures

    .. versionadded:: 0.1
    """


# model construction


@_owner_only("base")
def mgk_build_model(spec: Spec, device: torch.device) -> Bundle | None:
    """Build or load the base model.

    Called once per run, before anything else touches a device.

    :param spec: the pipeline's ``base``, an instance of a class the plugin registered
    :param device: where to put the model
    :return: the bundle, its model in evaluation mode with no parameter requiring a gradient

    .. versionadded:: 0.1
    """


@_owner_only("data")
def mgk_load_data(
    spec: Spec, bundle: Bundle, others: Sequence[Spec]
) -> PhaseData | None:
    """Read one phase's data and probes.

    Called for every phase before the baseline, since all probes are measured on the untouched base.

    :param spec: the phase's ``data``
    :param bundle: for its tokenizer, template and device
    :param others: the ``data`` of the pipeline's other phases and its own ``probes``, whose held-out
        rows must not be trained on either; empty where there is no pipeline
    :return: training set and probes; a `DataError` carries every bad row with file and line

    .. versionadded:: 0.1
    """


@_owner_only("probe")
def mgk_load_probes(
    spec: ProbeSpec, name: str, bundle: Bundle
) -> Sequence[Probe] | None:
    """Make the probes of one entry of the table ``probes``.

    Called for every entry after the data of all phases were read, by ``mgk plan`` too. The core
    binds them to ``spec.phase`` and sets their ``when``.

    :param spec: the entry
    :param name: its name, which the probes' names begin with
    :param bundle: for its tokenizer, template and device
    :return: one probe or several, each with a metric that a plugin registered

    .. versionadded:: 0.1
    """


# adapter injection


@_owner_only("adapter")
def mgk_attach_adapter(model: nn.Module, spec: Spec, name: str) -> Adapter | None:
    """Attach a new adapter.

    Called at a phase's entry, with every base parameter frozen. Random numbers come from torch's
    global generator, which the caller has seeded. Where statistics may be asked for, it is also
    called before the baseline is measured, once per distinct spec, to learn the targets; that adapter is detached at once.

    :param model: the bare base, or a base with other adapters attached
    :param spec: the phase's ``adapter``
    :param name: the adapter's name, that of its phase (``targets`` for the one that is detached at once)
    :return: the adapter, its parameters registered in the model and requiring gradients

    .. versionadded:: 0.1
    """


@_everyone(acts=True)
def mgk_init_adapter(adapter: Adapter, ctx: PhaseContext) -> None:
    """Read statistics before training, and initialise or constrain the adapter by them.

    Called once per phase, after the identity of the attached adapter was asserted and the
    phase's data was loaded; asserted again afterwards. Not called at resume: the checkpoint has the result.

    :param adapter: the phase's adapter
    :param ctx: the phase; ``ctx.history`` has the statistics of the base and earlier phases

    .. versionadded:: 0.1
    """


# optimizer step


@_owner_only("optimizer")
def mgk_make_optimizer(adapter: Adapter, spec: Spec) -> torch.optim.Optimizer | None:
    """Make the optimizer of a phase.

    Called once per phase, after ``mgk_init_adapter``. Also called before the baseline is measured,
    once per distinct pair of adapter and optimizer, so that what cannot be made is an error at once.

    :param adapter: its ``parameters()`` that require gradients are what is optimised
    :param spec: the phase's ``optimizer``
    :return: any `torch.optim.Optimizer`; its state is checkpointed. One with ``train()`` and ``eval()``
        is evaluated and merged after ``eval()``, as schedule-free optimizers need

    .. versionadded:: 0.1
    """


@_owner_only("loss")
def mgk_make_objective(ctx: PhaseContext) -> Objective | None:
    """Make what a phase minimises, where that is not the base's own loss of each batch.

    Called once per phase, with the adapter attached and initialised, before the step is made; also
    at resume, and by ``mgk plan`` to measure memory. Answers for ``ctx.phase.loss``, an instance of
    a `mgk_core.contract.specs.LossSpec`.

    :param ctx: the phase; ``ctx.adapter.disabled()`` gives the base as it was before the phase, for
        a reference or a teacher
    :return: the objective, or None for the base's own loss (`Bundle.loss`)

    .. versionadded:: 0.1
    """


@_everyone(acts=True)
def mgk_loss_terms(ctx: PhaseContext) -> Mapping[str, LossTerm] | None:
    """Offer callables that are added to the mean loss, once per optimizer step.

    Called once per phase, again after a recovery. Order: that of the plugins, then of the mapping.

    :param ctx: the phase, adapter attached and initialised
    :return: name → term; a term is a pure function of seed, phase, step and the adapter's parameters

    .. versionadded:: 0.1
    """


@_owner_only("step")
def mgk_make_step(ctx: StepContext) -> StepFn | None:
    """Make the function that performs one optimizer step.

    Called once per phase, again after a recovery. Answers for ``ctx.phase.phase.step``.

    :param ctx: phase and loss terms
    :return: the step; it never synchronises the device

    .. versionadded:: 0.1
    """


@_everyone(acts=False)
def mgk_observers(ctx: PhaseContext) -> Sequence[Observer] | None:
    """Offer objects that get the events of steps, evaluations and checkpoints.

    :param ctx: the phase
    :return: observers; one with ``state_dict`` and ``load_state_dict`` is checkpointed

    .. versionadded:: 0.1
    """


# phase transition


@_everyone(acts=False)
def mgk_phase_enter(ctx: PhaseContext) -> None:
    """Act at the beginning of a phase.

    Called with the base frozen, before the adapter is attached; also at resume.

    :param ctx: the phase

    .. versionadded:: 0.1
    """


@_everyone(acts=False)
def mgk_phase_exit(ctx: PhaseContext, outcome: Outcome) -> None:
    """Act at the end of a phase, also when it failed.

    :param ctx: the phase
    :param outcome: how it ended; ``outcome.error`` is set where it failed

    .. versionadded:: 0.1
    """


@_everyone(acts=False)
def mgk_recorded(run: Path, phase: str) -> None:
    """Read what a run has written, for a report or a tracker.

    Called when the record of a phase is complete on disk (its row of ``retention.json`` and its
    line of the journal), and once more when the run has finished. The run directory is the source:
    nothing of the model is handed over.

    :param run: the run directory; anything written there goes to ``report.html`` or ``files/``
    :param phase: the phase that has ended; empty at the end of the run

    .. versionadded:: 0.1
    """


@_everyone(acts=True)
def mgk_collect_statistics(ctx: PhaseContext) -> Mapping[str, Tensor] | None:
    """Collect what later phases need to know of this one, or of the base (``ctx.base_phase``).

    Called after a commit, adapters off, and once for the base before phase 0. Over all weights
    that a later phase targets (``ctx.targets``); `mgk_core.model.statistics.visit_layers` leaves padding out.

    :param ctx: the phase; for the base, one whose data holds the calibration batches
    :return: tensors to keep, by names that begin with the plugin's own prefix, or None

    .. versionadded:: 0.1
    """


@_owner_only("metric")
def mgk_evaluate(ctx: PhaseContext, probe: Probe) -> Score | None:
    """Measure one probe on the model in its present state.

    Called for each probe and row, for the plugin that registered ``probe.metric``. Dropout is off.

    :param ctx: the phase (for the baseline: the first)
    :param probe: what to measure
    :return: the score of that probe and metric, with n and standard error. NaN or infinity on the
        untouched base is an error; after a merge it refuses the transition

    .. versionadded:: 0.1
    """


@_everyone(acts=True)
def mgk_propose_merge(ctx: PhaseContext) -> Proposal | None:
    """Shape what is merged: scale, transform, keep apart, or refuse.

    A plugin that only adds something implements it as a wrapper (``wrapper=True``): it yields,
    gets the proposals of the others as a list, and returns a list with the last one changed.

    :param ctx: the phase, adapter attached and switched on
    :return: a proposal; the last that is not None counts, a plain full merge where all are None

    .. versionadded:: 0.1
    """


@_owner_only("merge")
def mgk_merge(
    model: nn.Module, adapter: Adapter, proposal: Proposal, spec: Spec
) -> MergeReport | None:
    """Fold an adapter's deltas into the base.

    Called once per proposal, before any gate. All or nothing: on any error the model is
    bit-identical to what it was. The adapter stays attached; the caller switches it off.

    :param model: the model with ``adapter`` attached
    :param adapter: what to fold in
    :param proposal: scale and transforms
    :param spec: the phase's ``merge``: which rule
    :return: what was merged and what rounding cost, with the means to undo it

    .. versionadded:: 0.1
    """


@_everyone(acts=True)
def mgk_gate(
    ctx: PhaseContext, before: Sequence[Mapping[str, Score]], after: Mapping[str, Score]
) -> Verdict | None:
    """Accept or refuse a merged model, with the reason. One refusal refuses.

    :param ctx: the phase
    :param before: all rows so far, the baseline first
    :param after: the row just measured
    :return: the verdict, each refusal with its reason, or None where the phase names none of the
        plugin's gates

    .. versionadded:: 0.1
    """


@_owner_only("recover")
def mgk_recover(
    ctx: PhaseContext,
    refusals: Sequence[Refusal],
    tried: Sequence[Recovery],
    spec: Spec,
) -> Recovery | None:
    """Choose what to try after a refusal.

    Called for each entry of the phase's ``recover`` in order, until one answers; after the last
    the phase is rolled back and the run stops.

    :param ctx: the phase; the merge was undone, the adapter is switched on again
    :param refusals: why the last proposal was refused
    :param tried: what was tried before, in order
    :param spec: the entry that is asked
    :return: what to try, or None where this entry has nothing (more) to offer

    .. versionadded:: 0.1
    """


def spec_names() -> list[str]:
    """Return the names of all hooks, in the order of this file."""
    return [n for n in globals() if n.startswith("mgk_")]


def slot_of(hook: str) -> Slot | None:
    """Return the slot whose type decides which plugin a hook is called for; None: every plugin."""
    slot: Slot | None = getattr(globals()[hook], "mgk_slot", None)
    return slot


def acts(hook: str) -> bool:
    """Whether a hook may change what a run computes where no type of its plugin is named."""
    return bool(getattr(globals()[hook], "mgk_acts", False))


__all__ = ["HOOK_API_VERSION", "hookimpl"]
