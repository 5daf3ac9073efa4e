"""The phase boundary as a state machine: live → proposed → merged → verified → scored → gated,
then committed, kept apart or rolled back, or round again through a recovery.

Nothing is final before the ledger's rename: everything else is prepared in new files, and a run
that dies in between goes through the transition again from the trained adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import attrs
import cattrs
import torch
from attrs import define, evolve, field
from torch import Tensor

from mgk_core.contract.adapter import Adapter, base_state_dict, state_of
from mgk_core.contract.bundle import Score, Shareable
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import MergeError, MgkError
from mgk_core.contract.outcome import (
    ByDelta,
    MergeReport,
    Outcome,
    Proposal,
    Recovery,
    Refusal,
    Result,
    Verdict,
)
from mgk_core.contract.specs import DeltaSpec
from mgk_core.contract.world import World
from mgk_core.model.digest import tensors_digest
from mgk_core.record.ledger import Attempt, PhaseEntry
from mgk_core.record.run_directory import RESIDUAL, STATISTICS, TRANSFORMED
from mgk_core.record.store import TEMPORARY
from mgk_core.run.declared_merge import BeforeMerge
from mgk_core.run.phase_record import PhaseRecord
from mgk_core.run.scores import measure_row, plain
from mgk_core.run.session import PhaseSession
from mgk_core.run.stored_transforms import materialise
from mgk_core.run.verify_merge import Verification, outputs_on, verify_merged


class State(StrEnum):
    """How far a transition has come; each value is the method that leaves the state."""

    LIVE = "live"
    PROPOSED = "proposed"
    MERGED = "merged"
    SCORED = "scored"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    APART = "apart"
    GIVEN_UP = "given_up"
    DONE = "done"


@define(eq=False)
class Transition:
    """One phase's end. train_on: lets the phase train further for a recovery."""

    session: PhaseSession
    ctx: PhaseContext
    record: PhaseRecord
    train_on: Callable[[Recovery], None]
    state: State = State.LIVE
    proposal: Proposal = field(factory=Proposal)
    forced: Proposal | None = None
    report: MergeReport | None = None
    verification: Verification | None = None
    live: list[Tensor] = field(factory=list)
    row: Mapping[str, Score] = field(factory=dict)
    digest: str = ""
    kept: dict[str, Tensor] = field(factory=dict)
    refusals: tuple[Refusal, ...] = ()
    attempts: list[Attempt] = field(factory=list)
    tried: list[Recovery] = field(factory=list)
    asked: int = 0
    result: Result = "failed"
    _off: ExitStack = field(factory=ExitStack)

    @property
    def adapter(self) -> Adapter:
        """The phase's adapter."""
        assert self.ctx.adapter is not None  # noqa: S101 - a transition begins with one attached
        return self.ctx.adapter

    @property
    def last(self) -> bool:
        """Whether this is the pipeline's last phase."""
        return self.session.is_last(self.ctx.index)

    def run(self) -> Outcome:
        """Go from state to state until the phase has ended; on an error the base is restored."""
        try:
            while self.state is not State.DONE:
                self._check_stop()
                self.state = getattr(self, f"_{self.state.value}")()
        except BaseException:
            self._undo()
            raise
        return Outcome(self.result, self.report, self.refusals, tuple(self.tried))

    def _live(self) -> State:
        """Keep the unmerged outputs for verification, score the unmerged model if asked, and propose."""
        ctx = self.ctx
        assert ctx.data is not None  # noqa: S101 - loaded before training
        self.session.weights.hold(self.adapter)
        self.live = outputs_on(ctx.bundle, ctx.data.verify)
        if not all(bool(torch.isfinite(t).all()) for t in self.live):
            raise MgkError(
                f"phase {ctx.phase.name!r}: after training the outputs are not finite, so nothing can be merged; lower"
                f" phases.{ctx.phase.name}.optimizer.lr or set optimizer.clip, then run the phase again with 'mgk phase'"
            )
        if ctx.phase.evaluate.live:
            with self.session.timed("evaluation"):
                self._tell_row(f"{ctx.phase.name} (live)", self._measure(), live=True)
        start = Proposal(
            undo="disk" if ctx.config.run.undo == "disk" else "memory",
            spool=str(ctx.directory / f"{TEMPORARY}undo"),
        )
        proposal = self.forced or self._proposed_by_plugins(start)
        self._check_weights("the proposal")
        self.proposal = ctx.proposal = evolve(
            proposal,
            undo=start.undo,
            spool=start.spool,
            last=self.last,
            verify=self._verify,
        )
        return State.PROPOSED

    def _proposed_by_plugins(self, start: Proposal) -> Proposal:
        """Ask the plugins, then add the phase's own transforms behind theirs."""
        proposal = self.session.hooks.propose_merge(self.ctx, start)
        own = tuple(ByDelta(spec) for spec in self.ctx.phase.of(DeltaSpec))
        return (
            evolve(proposal, transforms=(*proposal.transforms, *own))
            if own
            else proposal
        )

    def _proposed(self) -> State:
        """Merge, all or nothing, and leave the adapter attached but off."""
        if self.proposal.refuse is not None:
            self.refusals = (Refusal("propose", self.proposal.refuse),)
            return State.REFUSED
        if self.proposal.keep_apart:
            return State.APART
        ctx = self.ctx
        with self.session.timed("merge"), self._naming_plugins():
            self.proposal, self.kept = materialise(
                self.adapter, self.proposal, base_state_dict(ctx.model)
            )
            report = self.session.world.together(self._merge)
            self._off.enter_context(self.adapter.disabled())
            self.digest = self.session.weights.accept_merge(self.adapter, "the merge")
            self.session.world.agree("the merged base", self.digest)
        self.session.events(
            "merge", phase=ctx.phase.name, rule=report.rule, scale=self.proposal.scale, kept=report.kept,
            kept_total=report.kept_total, max_error=report.max_error, relative=report.relative,
            warnings=list(report.warnings),
        )  # fmt: skip
        return State.MERGED

    @contextmanager
    def _naming_plugins(self) -> Iterator[None]:
        """Add to a refused merge whose adapter, transforms and rule took part, where not mgk's own."""
        try:
            yield
        except MergeError as error:
            plugins, phase = self.session.hooks.plugins, self.ctx.phase
            classes = [
                type(p) for p in (self.adapter, *phase.of(DeltaSpec), phase.merge)
            ]
            classes += [type(t) for t in self.proposal.transforms]
            found = dict.fromkeys(filter(None, map(plugins.plugin_of, classes)))
            if not found:
                raise
            who = ", ".join(f"plugin {plugins.describe(name)}" for name in found)
            raise MergeError(f"{error} (code of {who} took part)") from error

    def _merge(self) -> MergeReport:
        """Merge on this rank; kept at once, so that it is undone where another rank fails."""
        hooks, ctx = self.session.hooks, self.ctx
        plugins = hooks.merging_plugins(ctx.phase.merge)
        before = BeforeMerge.of(ctx.model, self.adapter) if plugins else None
        self.report = hooks.merge(
            ctx.model, self.adapter, self.proposal, ctx.phase.merge
        )
        if before is not None:
            problem = before.problem(self.adapter, self.proposal, self.report)
            if self.report.undo is None:
                problem = "returned a MergeReport without undo; a run must be able to undo a merge"
            if problem is not None:
                raise hooks.plugins.fault(plugins, "mgk_merge", problem)
        return self.report

    def _merged(self) -> State:
        """Verify merged against unmerged outputs, unless the merge rule already did; score the row."""
        with self.session.timed("merge"):
            if (
                self.verification is None
                and self.report is not None
                and self.report.exact
            ):
                self._verify()
        with self.session.timed("evaluation"):
            cached = self.record.scores(self.digest)
            self.row = cached or self._measure()
        self._check_weights("the scores")
        self.record.write_scores(self.row, self.digest)
        return State.SCORED

    def _verify(self) -> None:
        """Compare merged with unmerged outputs, unless the merge changed the delta on purpose.

        :raises MergeError: they differ by more than the tolerance measured from rounding
        """
        ctx = self.ctx
        assert ctx.data is not None  # noqa: S101 - loaded before training
        if (
            self.proposal.scale != 1.0
            or self.proposal.transforms
            or not ctx.data.verify
        ):
            return
        with self.adapter.disabled():
            found = verify_merged(
                ctx.bundle, self.adapter, ctx.data.verify, self.live, seed=ctx.seed
            )
        self.verification = found
        self.session.events(
            "verify",
            phase=ctx.phase.name,
            error=found.error,
            bound=found.bound,
            ok=found.ok,
        )
        if not found.ok:
            if (
                self.state is State.MERGED
            ):  # a write since the merge is not the adapter's error
                self._check_weights("the verification")
            raise MergeError(
                f"phase {ctx.phase.name!r}: merged and unmerged outputs differ by {found.error:.3g} (relative 2-norm);"
                f" the tolerance from rounding is {found.bound:.3g}. The base was restored; the adapter's"
                f" merged_weight ({self._adapter_of()}) does not compute what its forward pass does: see"
                " 'mgk check-plugin'"
            )

    def _adapter_of(self) -> str:
        """Name the adapter's type and plugin, for messages."""
        plugins, type_ = self.session.hooks.plugins, self.ctx.phase.adapter.type
        return f"type {type_!r} of plugin {plugins.describe(plugins.owner('adapter', type_))}"

    def _check_weights(self, when: str) -> None:
        """Check that base and adapter are what they must be; `when` is what was just done."""
        with self.session.timed("merge"):
            self.session.weights.check(when, self.adapter)

    def _measure(self) -> dict[str, Score]:
        return measure_row(
            self.session.hooks, self.ctx, ends=self.last, stop=self._check_stop
        )

    def _scored(self) -> State:
        """Ask the gates; one refusal refuses."""
        ctx = self.ctx
        self._tell_row(ctx.phase.name, self.row)
        verdicts = _strictest(
            self.session.world,
            self.session.hooks.gate(
                ctx, [*map(MappingProxyType, ctx.scores)], MappingProxyType(self.row)
            ),
        )
        self._tell_verdicts(verdicts)
        self.refusals = tuple(r for v in verdicts if not v.accept for r in v.refusals)
        refused = any(not v.accept for v in verdicts)
        return State.REFUSED if refused else State.ACCEPTED

    def _tell_verdicts(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            self.ctx.notes += verdict.notes
            self.session.events(
                "gate", phase=self.ctx.phase.name, accept=verdict.accept, notes=list(verdict.notes),
                refusals=[attrs.asdict(r) for r in verdict.refusals],
            )  # fmt: skip

    def _refused(self) -> State:
        """Undo the merge and ask the configured recoveries, in order, what to try."""
        self._undo()
        self._check_weights("undoing the merge")
        ctx, limit = self.ctx, self.ctx.config.run.max_recoveries
        while self.asked < len(ctx.phase.recover):
            if len(self.tried) >= limit:
                self.refusals += (_too_many(limit),)
                return State.GIVEN_UP
            spec = ctx.phase.recover[self.asked]
            recovery = self.session.hooks.recover(ctx, self.refusals, self.tried, spec)
            self._check_weights("asking for a recovery")
            if recovery is not None:
                return self._follow(recovery)
            self.asked += 1
        return State.GIVEN_UP

    def _follow(self, recovery: Recovery) -> State:
        """Record a recovery, and go to the state that it leads to."""
        what = {"method": recovery.method, "action": recovery.action}
        self.attempts.append(
            Attempt(recovery.method, self.refusals, dict(recovery.evidence))
        )
        self.tried.append(recovery)
        self.record.note("recover", phase=self.ctx.phase.name, **what)
        self.session.events("recover", phase=self.ctx.phase.name, **what)
        if recovery.action == "keep_apart":
            return State.APART
        if recovery.action == "stop":
            return State.GIVEN_UP
        if recovery.action == "train":
            self.train_on(recovery)
            self.forced = None
            return State.LIVE
        self.forced = recovery.proposal
        return State.LIVE

    def _accepted(self) -> State:
        """Statistics for later phases, then the commit."""
        ctx = self.ctx
        with self.session.timed("statistics"):
            statistics = self.session.hooks.collect_statistics(ctx)
        self._check_weights("gates and statistics")
        if statistics:
            self.record.write_tensors(STATISTICS, statistics)
        self._write_merge()
        self._commit("committed", self.digest)
        return State.DONE

    def _apart(self) -> State:
        """Leave the base as it was; the scores of this row are those of the unmerged model."""
        ctx = self.ctx
        self.digest = self.session.ledger.head
        with self.session.timed("evaluation"):
            self.row = self._measure()
        self._check_weights("the scores")
        self._tell_row(ctx.phase.name, self.row, kept_apart=True)
        self.record.write_scores(self.row, self.digest, kept_apart=True)
        self.session.marks[ctx.phase.name] = "kept apart"
        self._commit("kept_apart", self.digest)
        return State.DONE

    def _given_up(self) -> State:
        """Roll back; the phase's adapter and the evidence stay on disk."""
        self.digest = self.session.ledger.head
        self.attempts.append(Attempt("roll back", self.refusals))
        self._commit("rolled_back", self.digest)
        return State.DONE

    def _write_merge(self) -> None:
        """Write what the merge did, the residual, and the deltas where transforms changed them."""
        report = self.report
        assert report is not None  # noqa: S101 - only after a merge
        table = attrs.asdict(
            report, filter=lambda a, _: a.name not in ("undo", "change")
        )
        table["verification"] = (
            attrs.asdict(self.verification) if self.verification else None
        )
        self.record.write_report(table)
        residuals = state_of(self.ctx.model).residuals
        if residuals:
            self.record.write_tensors(RESIDUAL, residuals)
        if self.kept:
            self.record.write_tensors(TRANSFORMED, self.kept)

    def _adapter_keys(self) -> dict[str, Any]:
        """Return what names this phase's base in PEFT's configuration.

        A base that earlier phases were merged into exists in this run only: no other library may
        take the original for it.
        """
        session = self.session
        if not isinstance(session.bundle, Shareable):
            return {}
        keys = dict(session.bundle.adapter_keys())
        merged = [e.phase for e in session.ledger.phases if e.result == "committed"]
        if merged:
            name = keys.get("base_model_name_or_path")
            keys["base_model_name_or_path"] = f"{name} after {' and '.join(merged)}"
        return keys

    def _commit(self, result: Result, merged: str) -> None:
        """Make the phase's end final: by the ledger's rename."""
        session, ctx = self.session, self.ctx
        state = {k: v.detach() for k, v in self.adapter.state_dict().items()}
        self.record.write_adapter(self.adapter, state, self._adapter_keys())
        report = self.report if result == "committed" else None
        entry = PhaseEntry(
            phase=ctx.phase.name,
            index=ctx.index,
            result=result,
            base=session.ledger.head,
            adapter=tensors_digest(state),
            merged=merged,
            scale=self.proposal.scale,
            last=self.proposal.last,
            transforms=tuple(t.name for t in self.proposal.transforms),
            rule=report.rule if report else "",
            exact=report.exact if report else True,
            kept=report.kept if report else None,
            kept_total=report.kept_total if report else None,
            max_error=report.max_error if report else None,
            verify=attrs.asdict(self.verification)
            if report and self.verification
            else {},
            attempts=tuple(self.attempts),
            notes=tuple(ctx.notes),
            data=ctx.data.train.digest if ctx.data else "",
            steps=ctx.steps,
            files=self.record.files(),
        )
        self.record.commit(entry)
        self.result = result
        self._off.close()
        if (
            self.report is not None
            and self.report.undo is not None
            and result == "committed"
        ):
            self.report.undo.release()

    def _undo(self) -> None:
        """Put the base back bit for bit, and the adapter on again."""
        if (
            self.report is not None
            and self.report.undo is not None
            and self.state is not State.DONE
        ):
            self.report.undo.restore()
            self.session.weights.expect_undone()
        self.report, self.verification = None, None
        self._off.close()

    def _tell_row(self, name: str, row: Mapping[str, Score], **marks: Any) -> None:
        scores = plain(row.values())
        self.session.events(
            "evaluation", phase=self.ctx.phase.name, row=name, scores=scores, **marks
        )

    def _check_stop(self) -> None:
        self.session.check_stop(
            "between two steps of a transition; nothing of it is committed"
        )


def _strictest(world: World, own: list[Verdict]) -> list[Verdict]:
    """Return the verdicts of the first rank on which a gate refuses; the leader's where none does."""
    if world.size == 1:
        return own
    tables = world.gather([attrs.asdict(v) for v in own])
    ranks = cattrs.structure(tables, list[list[Verdict]])
    refused = (found for found in ranks if not all(v.accept for v in found))
    return next(refused, ranks[0])


def _too_many(limit: int) -> Refusal:
    return Refusal(
        "recover",
        f"{limit} recoveries were tried, the most that run.max_recoveries allows",
        evidence={"max_recoveries": limit},
    )
