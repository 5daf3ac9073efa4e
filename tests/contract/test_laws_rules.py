"""Merge rules: the shipped one holds to every law; each fault breaks exactly the law about it."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import state_of
from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import Proposal
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.testing.laws import assert_hold
from mgk_core.testing.rules import LAWS, check_rule

HOOKS = Hooks(load_plugins())


def exact(model, adapter, proposal):
    """Merge by the shipped rule."""
    spec = structure_spec(HOOKS.plugins.registry, "merge", {"type": "exact"})
    return HOOKS.merge(model, adapter, proposal, spec)


def short(model, adapter, proposal):
    """Merge a thousandth less than all."""
    return exact(
        model,
        adapter,
        evolve(proposal, scale=0.999 if proposal.scale == 1.0 else proposal.scale),
    )


def whole(model, adapter, proposal):
    """Merge all of the delta, whatever scale is proposed."""
    return exact(model, adapter, evolve(proposal, scale=1.0))


def piecemeal(model, adapter, proposal):
    """Merge, and leave the first weight changed where a later one fails."""
    first = next(iter(adapter.targets().values())).parameter
    try:
        return exact(model, adapter, proposal)
    except (MergeError, KeyboardInterrupt) as error:
        said = str(error)
        if proposal.refuse is None and not any(
            w in said for w in ("zero", "merged already", "not attached")
        ):
            with torch.no_grad():
                first.add_(1)
        raise


class Subtracting:
    """Goes back by arithmetic instead of with the tensors of before."""

    def __init__(self, adapter, undo):
        self.adapter, self.undo = adapter, undo

    def restore(self):
        self.undo.restore()
        with torch.no_grad():
            for target in self.adapter.targets().values():
                target.parameter.add_(0.7).sub_(0.7)

    def release(self):
        self.undo.release()


def inexact_undo(model, adapter, proposal):
    report = exact(model, adapter, proposal)
    return evolve(report, undo=Subtracting(adapter, report.undo))


def boastful(model, adapter, proposal):
    """Report twice the delta that was merged."""
    report = exact(model, adapter, proposal)
    weights = tuple(evolve(w, delta_norm=2 * w.delta_norm) for w in report.weights)
    return evolve(report, weights=weights)


class Repeatable:
    """An undo that can be restored again and again, and never lets go of anything."""

    def __init__(self, adapter, undo):
        self.undo, self.last = undo, None
        self.adapter = adapter

    def restore(self):
        self.undo.put_back()

    def release(self):
        """Keep everything."""


def endless_undo(model, adapter, proposal):
    report = exact(model, adapter, proposal)
    return evolve(report, undo=Repeatable(adapter, report.undo))


def accepting_zero(model, adapter, proposal):
    """Accept a merge of nothing."""
    try:
        return exact(model, adapter, proposal)
    except MergeError as error:
        if "zero" in str(error):
            return None
        raise


def again(model, adapter, proposal):
    """Merge as often as asked."""
    state_of(model).merged.clear()
    return exact(model, adapter, proposal)


BROKEN = {
    "the merged model equals the unmerged one": short,
    "scale and refusal are honoured": whole,
    "the merge is what it declares": boastful,
    "undo works once, and frees what it held": endless_undo,
    "all or nothing": piecemeal,
    "rollback is bit-exact": inexact_undo,
    "a delta of zero is refused": accepting_zero,
    "merging twice is refused": again,
}


def test_the_shipped_rule_holds_to_every_law():
    """In fp32, bf16 with residuals, and float64."""
    assert_hold(check_rule(exact))


@pytest.mark.parametrize("law", BROKEN)
def test_one_fault_of_a_rule_breaks_exactly_its_law(law):
    """Each law catches what it is there for; a delta that is merged short breaks two."""
    also = {"the merge is what it declares"} if BROKEN[law] is short else set()
    assert {r.law for r in check_rule(BROKEN[law]) if r.ok is False} == {law} | also


def test_every_law_of_rules_has_a_fault_that_it_catches():
    """No law is without proof that it can fail."""
    assert {law.name for law in LAWS} == set(BROKEN)


def test_a_proposal_that_refuses_is_a_refusal():
    """A rule that goes on all the same is found out."""
    found = check_rule(
        lambda model, adapter, p: exact(
            model, adapter, Proposal(scale=p.scale, undo=p.undo)
        )
    )
    assert {r.detail for r in found if r.ok is False} == {
        "a proposal that refuses was merged"
    }


def halving(name, delta):
    """What a rule by `DeltaSpec` may declare."""
    return delta / 2


def test_a_rule_may_change_deltas_as_it_declares():
    """Half of every delta, through the engine: relative to what it declares, everything holds."""

    def half(model, adapter, proposal):
        return evolve(
            exact(model, adapter, evolve(proposal, scale=proposal.scale / 2)),
            exact=False,
        )

    assert_hold(check_rule(half, change=halving))
    told = {r.law for r in check_rule(half) if r.ok is False}
    assert told == {"the merge is what it declares", "scale and refusal are honoured"}


def test_a_rule_may_not_call_itself_inexact_and_do_anything():
    """It zeroes the weights and says that its merge is not exact."""

    def zeroing(model, adapter, proposal):
        report = exact(model, adapter, proposal)
        with torch.no_grad():
            for target in adapter.targets().values():
                target.parameter.zero_()
        return evolve(report, exact=False)

    for change in (None, halving):
        broken = {r.law for r in check_rule(zeroing, change=change) if r.ok is False}
        assert "the merge is what it declares" in broken
