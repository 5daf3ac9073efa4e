"""A phase, from entry to exit: attach, assert the identity, train, hand over to the transition."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import attrs
import torch
from attrs import define, field
from torch import Tensor

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import Adapter, state_of, trainable
from mgk_core.contract.context import Averages, PhaseContext, StepContext, StepFn
from mgk_core.contract.errors import (
    GateRefused,
    InputError,
    Interrupted,
    MgkError,
    PluginError,
    StoreError,
)
from mgk_core.contract.outcome import LossTerm, Outcome, Recovery, Result
from mgk_core.contract.sampling import steps_of
from mgk_core.contract.specs import Spec
from mgk_core.model.device import reset_peak
from mgk_core.model.digest import tensors_digest
from mgk_core.record.checkpoint import (
    Loaded,
    Progress,
    seed_all,
    set_rng_state,
)
from mgk_core.run.attached import take_off
from mgk_core.run.phase_record import CheckpointParts, PhaseRecord
from mgk_core.run.session import PhaseSession
from mgk_core.run.training import Trainer
from mgk_core.run.transition import Transition
from mgk_core.run.verify_merge import outputs_on, relative_error

SAME_LOSS = 1e-4  # relative; the same weights and examples on the same device give the same bits
CLOSE = (
    1e-3  # an adapter that promises "close" may move the outputs by this much, relative
)


@define(eq=False)
class PhaseRun:
    """Runs one phase of a session, from the beginning or from its newest checkpoint."""

    session: PhaseSession
    index: int
    record: PhaseRecord = field(init=False)
    ctx: PhaseContext = field(init=False)
    progress: Progress = field(factory=Progress)
    trainer: Trainer | None = None
    observers: list[object] = field(factory=list)
    terms: dict[str, LossTerm] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.record = self.session.record(self.index)
        self.ctx = self.session.context(self.index)

    def run(self) -> Outcome:
        """Run the phase. `mgk_phase_exit` is called however it ends."""
        session, ctx = self.session, self.ctx
        checkpoint = session.take_checkpoint()
        # A run resumed from a checkpoint already has this line in its metrics.
        tell = session.events if checkpoint is None else session.events.tell
        tell(
            "phase",
            phase=ctx.phase.name,
            index=self.index,
            title=ctx.phase.title,
            state="enter",
        )
        reset_peak(session.device)
        try:
            session.hooks.phase_enter(ctx)
            outcome = self._run(checkpoint)
            self._take_off()
        except BaseException as error:
            self._failed(error)
            raise
        session.hooks.phase_exit(ctx, outcome)
        session.weights.check("the phase's end")
        return outcome

    def _failed(self, error: BaseException) -> None:
        """Notify the plugins of a failed phase; errors raised on the way are added to it as notes."""
        kind: Result = (
            "interrupted"
            if isinstance(error, (Interrupted, KeyboardInterrupt))
            else "failed"
        )
        try:
            self._take_off()
            self.session.hooks.phase_exit(self.ctx, Outcome(kind, error=error))
        except Exception as second:  # noqa: BLE001 - the first error is the one to raise, whatever came of it
            error.add_note(f"and when the phase was left: {second}")

    def refused(self, outcome: Outcome) -> GateRefused:
        """Build the error that reports why a phase was rolled back."""
        reasons = "; ".join(f"{r.gate}: {r.reason}" for r in outcome.refusals)
        return GateRefused(
            f"phase {self.ctx.phase.name!r} was refused and rolled back: {reasons}. The base is as before the phase;"
            f" its adapter is in {self.ctx.directory / 'adapter'}"
        )

    def _run(self, checkpoint: Loaded | None) -> Outcome:
        session, ctx = self.session, self.ctx
        assert ctx.data is not None  # noqa: S101 - the runner loads data first
        settings = ctx.phase.train
        ctx.steps = steps_of(
            len(ctx.data.train), settings.batch_size, settings.epochs, settings.steps
        )
        done = checkpoint.progress.step if checkpoint is not None else 0
        self.record.note(
            "phase_enter", phase=ctx.phase.name, steps=ctx.steps, done=done
        )
        with session.timed("attach"):
            ctx.adapter = self._attach(checkpoint)
        trainer = self._trainer()
        if checkpoint is not None:
            self._load(checkpoint, trainer)
        with session.timed("training"):
            finished = trainer.run(ctx.steps)
        if self.progress.stopped:
            self._stopped_early()
        if not finished:
            raise Interrupted(
                f"phase {ctx.phase.name!r} stopped after step {self.progress.step} of {ctx.steps}"
            )
        self._finish_training(trainer)
        outcome = Transition(session, ctx, self.record, self._train_on).run()
        self.record.remove_checkpoints()
        return outcome

    def _stopped_early(self) -> None:
        """Note that dev did not improve any more; the phase has as many steps as it trained."""
        progress, ctx = self.progress, self.ctx
        self.record.note(
            "early_stop",
            phase=ctx.phase.name,
            step=progress.step,
            steps=ctx.steps,
            best_step=progress.best_step,
            best_loss=progress.best_loss,
        )
        ctx.steps = progress.step

    def _attach(self, checkpoint: Loaded | None) -> Adapter:
        """Attach the adapter, check what it promised, and let plugins initialise it (a checkpoint has that)."""
        session, ctx = self.session, self.ctx
        assert ctx.data is not None  # noqa: S101 - the runner loads data first
        model = ctx.model
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        base = outputs_on(ctx.bundle, ctx.data.verify)
        seed_all(ctx.seed)
        adapter = session.hooks.attach_adapter(model, ctx.phase.adapter, ctx.phase.name)
        state_of(model).adapters.append(adapter)
        ctx.adapter = adapter
        attached = self._blamed("mgk_attach_adapter")
        _check_trainable(ctx, adapter, attached)
        _check_identity(ctx, adapter, base, attached)
        if checkpoint is None:
            session.hooks.init_adapter(adapter, ctx)
            session.weights.check("initialising the adapter")
            _check_identity(ctx, adapter, base, self._blamed("mgk_init_adapter"))
            parameters = adapter.parameters()
            self.progress.frozen = [
                i for i, p in enumerate(parameters) if not p.requires_grad
            ]
            if len(self.progress.frozen) == len(parameters):
                raise InputError(
                    f"phase {ctx.phase.name!r}: nothing is trained, as all parameters of its adapter are frozen;"
                    " set train = true on a loaded adapter, or add one that is trained"
                )
        else:
            session.weights.check("attaching the adapter")
            for i in checkpoint.progress.frozen:
                adapter.parameters()[i].requires_grad_(False)
        return adapter

    def _blamed(self, hook: str) -> Callable[[str], PluginError]:
        """Return what makes the error for an adapter that a hook has left in a wrong state."""
        plugins = self.session.hooks.plugins
        owner = plugins.owner("adapter", self.ctx.phase.adapter.type)
        attaching = hook == "mgk_attach_adapter"
        suspects = [owner] if attaching else (plugins.call_order(hook) or [owner])
        return functools.partial(plugins.fault, suspects, hook)

    def _trainer(self) -> Trainer:
        session, ctx = self.session, self.ctx
        assert ctx.adapter is not None  # noqa: S101 - attached above
        if ctx.optimizer is None:
            ctx.optimizer = session.hooks.make_optimizer(
                ctx.adapter, ctx.phase.optimizer
            )
        self._make_objective()
        self.observers = list(session.hooks.observers(ctx))
        session.events.observe(self.observers)  # type: ignore[arg-type]
        step = self._make_step()
        self.trainer = Trainer(
            ctx,
            step,
            session.events,
            self.progress,
            self._save,
            session.stop,
            self._halved,
            session.auto_batch,
            terms=self.terms,
        )
        return self.trainer

    def _make_objective(self) -> None:
        """Make what the phase minimises; a reference model may run over the training set for it."""
        session, ctx = self.session, self.ctx
        ctx.objective = session.hooks.make_objective(ctx)
        if ctx.objective is not None:
            with session.timed("objective"):
                ctx.objective.prepare()
            session.weights.check("preparing the objective")

    def _make_step(self) -> StepFn:
        self.terms.clear()  # the trainer holds the same mapping
        self.terms.update(terms := self.session.hooks.loss_terms(self.ctx))
        return self.session.hooks.make_step(
            StepContext(self.ctx, tuple(terms.values()), tuple(terms))
        )

    def _halved(self, micro: int) -> None:
        session, name, step = self.session, self.ctx.phase.name, self.progress.step
        self.record.note("auto_batch", phase=name, step=step, micro_batch=micro)
        text = f"out of memory in step {step + 1}: {micro} examples in memory at once from here on; the batch stays the same"
        session.events("note", phase=name, text=text)

    def _save(self) -> None:
        """Write a checkpoint of everything; called by the trainer between two steps."""
        session, trainer = self.session, self.trainer
        assert trainer is not None and self.ctx.adapter is not None  # noqa: S101, PT018 - it calls this
        with session.timed("checkpoint"):
            session.weights.check(
                "training"
            )  # a checkpoint must not carry on from a wrong base
            self.progress.metrics = session.mark()
            self.progress.observers = [
                o.state_dict() if hasattr(o, "state_dict") else None
                for o in self.observers
            ]
            if session.world.size > 1:
                state = tensors_digest(self.ctx.adapter.state_dict())
                session.world.agree("the adapter", state)
            parts = CheckpointParts(
                self.progress, self.ctx.adapter, trainer.step, trainer.best
            )
            keep = self.ctx.phase.train.keep_checkpoints
            self.record.save_checkpoint(parts, session.device, keep)
            self.record.note(
                "checkpoint", phase=self.ctx.phase.name, step=self.progress.step
            )

    def _load(self, checkpoint: Loaded, trainer: Trainer) -> None:
        """Continue from a checkpoint as if nothing had happened."""
        for attribute in attrs.fields(Progress):
            setattr(
                self.progress,
                attribute.name,
                getattr(checkpoint.progress, attribute.name),
            )
        try:
            self._load_states(checkpoint.parts, trainer)
        except (InputError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StoreError(
                f"{checkpoint.path}: does not fit this run: {error}; remove this folder and run 'mgk resume' to continue"
                " from the previous checkpoint, or from the start of the phase"
            ) from error
        for observer, state in zip(
            self.observers, self.progress.observers, strict=False
        ):
            if state is not None and hasattr(observer, "load_state_dict"):
                observer.load_state_dict(state)
        self._check_loss(trainer)
        set_rng_state(checkpoint.parts["rng"], self.session.device)

    def _load_states(
        self, parts: Mapping[str, Mapping[str, Tensor]], trainer: Trainer
    ) -> None:
        """Put adapter, optimizer and random numbers where they were."""
        ctx = self.ctx
        assert ctx.adapter is not None  # noqa: S101 - attached before
        if self.progress.step > ctx.steps:
            raise ValueError(
                f"it is of step {self.progress.step}, and the phase has {ctx.steps}"
            )
        ctx.adapter.load_state_dict(parts["adapter"])
        trainer.step.load_state_dict(parts["optimizer"])
        trainer.best = dict(parts["best"]) if "best" in parts else None
        set_rng_state(parts["rng"], self.session.device)

    def _check_loss(self, trainer: Trainer) -> None:
        """Check that the loss of the next batch matches the one at the checkpoint, and report it."""
        before, name = self.progress.check, self.ctx.phase.name
        now = trainer.next_loss()
        place = f"resumed after step {self.progress.step} of {self.ctx.steps}"
        if before is None:
            return
        if _same_loss(before, now):
            self.session.events(
                "note",
                phase=name,
                text=f"{place}; the next batch's loss is {now:.6g}, as it was",
            )
            return
        text = f"the next batch's loss was {before:.6g} at the checkpoint and is {now:.6g} now"
        if not self.session.changed:
            raise MgkError(
                f"phase {name!r} cannot continue reproducibly: {text}, though no recorded input has changed; is the"
                " data still what it was, and does its plugin's digest cover all of it? Start the phase again with 'mgk phase'"
            )
        self.session.events(
            "note",
            phase=name,
            text=f"{place}; {text}, after the change that was accepted",
        )

    def _finish_training(self, trainer: Trainer) -> None:
        """Take the best step where asked for, and check that training left the base alone."""
        ctx = self.ctx
        assert ctx.adapter is not None  # noqa: S101 - attached before
        with self.session.timed("merge"):
            self.session.weights.check("training")
        if self.record.last_checkpoint() != self.progress.step:
            trainer.checkpoint()
        if isinstance(trainer.step, Averages):
            trainer.step.finish()
        if trainer.best is not None and ctx.phase.train.keep == "best":
            ctx.adapter.load_state_dict(trainer.best)
            text = f"the best step by dev loss is {self.progress.best_step}"
            self.session.events("note", phase=ctx.phase.name, text=text)

    def _train_on(self, recovery: Recovery) -> None:
        """Train further for a recovery, with what it adds; hooks are resolved again."""
        ctx, trainer = self.ctx, self.trainer
        assert trainer is not None  # noqa: S101 - training came first
        registry = self.session.hooks.plugins.registry
        added = (
            s if isinstance(s, Spec) else structure_spec(registry, "retention", s)
            for s in recovery.retention
        )
        ctx.extra_retention = (*ctx.extra_retention, *added)
        ctx.steps += recovery.steps
        self.progress.stopped, self.progress.waited = False, 0
        state = {k: v.clone() for k, v in trainer.step.state_dict().items()}
        trainer.step = self._make_step()
        trainer.step.load_state_dict(state)
        trainer.save = lambda: (
            None
        )  # a kill in here goes back to the trained adapter, deterministically
        with self.session.timed("training"):
            if not trainer.run(ctx.steps):
                raise Interrupted(
                    f"phase {ctx.phase.name!r} stopped while training on after a refusal"
                )

    def _take_off(self) -> None:
        """Detach the adapter if it is still on."""
        if self.ctx.adapter is not None:
            take_off(self.session.hooks, self.ctx.model, self.ctx.adapter)
        self.session.events.observe([])


def _same_loss(before: float, now: float) -> bool:
    """Equal, up to what a device's rounding may do; NaN is the same as NaN."""
    return math.isclose(before, now, rel_tol=SAME_LOSS) or (
        math.isnan(before) and math.isnan(now)
    )


def _check_trainable(
    ctx: PhaseContext, adapter: Adapter, blamed: Callable[[str], PluginError]
) -> None:
    """Only the adapter's parameters may train, and there must be some."""
    own = {id(p) for p in adapter.parameters()}
    foreign = [n for n, p in trainable(ctx.model) if id(p) not in own]
    if foreign or not own:
        what = (
            f"left these trainable: {', '.join(foreign[:5])}"
            if foreign
            else "has no parameters"
        )
        raise blamed(f"adapter type {ctx.phase.adapter.type!r} {what}")


def _check_identity(
    ctx: PhaseContext,
    adapter: Adapter,
    base: list[Tensor],
    blamed: Callable[[str], PluginError],
) -> None:
    """Check that the untrained adapter leaves the output as it promises."""
    assert ctx.data is not None  # noqa: S101 - loaded before
    if adapter.identity == "none" or not base:
        return
    if not all(bool(torch.isfinite(t).all()) for t in base):
        raise MgkError(
            f"phase {ctx.phase.name!r}: the base's outputs on the verification batches are not finite; look for NaN or"
            " inf in the phase's data, or load a whole base"
        )
    found = outputs_on(ctx.bundle, ctx.data.verify)
    equal = all(torch.equal(a, b) for a, b in zip(found, base, strict=True))
    error = relative_error(found, base)
    allowed = adapter.identity == "close" and error <= CLOSE
    if not (equal or allowed) or math.isnan(error):
        raise blamed(
            f"adapter type {ctx.phase.adapter.type!r} promises identity {adapter.identity!r} at attach, but the outputs"
            f" moved by {error:.3g} (relative 2-norm)"
        )
