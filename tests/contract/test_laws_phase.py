"""Retention methods, loss terms, recoveries and observers: a fault breaks exactly the law about it."""

from __future__ import annotations

import itertools

import pytest
import torch
from attrs import evolve

from mgk_core.contract.outcome import Proposal, Recovery
from mgk_core.contract.specs import Spec
from mgk_core.host.manager import load_plugins
from mgk_core.testing import observers, recoveries, retention
from mgk_core.testing.check import check_loaded
from mgk_core.testing.observers import check_observer
from mgk_core.testing.recoveries import check_recovery
from mgk_core.testing.retention import check_retention

SPEC = Spec(type="mine")


@pytest.mark.parametrize("plugin", ["retention", "validation", "textmodel", "merge"])
def test_shipped_plugins_hold(plugin):
    """Every type that can be tested with its defaults; nothing is broken."""
    assert not [r for r in check_loaded(load_plugins(), plugin) if r.ok is False]


# retention


def named(ctx):
    """Whether any phase of the run names the method."""
    return any(p.of(Spec) for p in ctx.config.phases)


def collect(ctx):
    return (
        {"mine/w": ctx.bundle.model.get_parameter("1.weight").detach() ** 2}
        if named(ctx)
        else None
    )


def terms(ctx):
    if not ctx.specs(Spec):
        return None
    return {
        "mine": lambda step: sum(p.square().sum() for p in ctx.adapter.parameters())
    }


def hoarding(ctx):
    batch = ctx.data.train.batch(range(3))
    return {"mine/ids": torch.tensor([e.ids for e in batch])} if named(ctx) else None


def unsteady(ctx):
    return {"mine/w": torch.randn(3)} if named(ctx) else None


def wobbling(ctx):
    count = itertools.count()
    if not ctx.specs(Spec):
        return None
    return {
        "mine": lambda step: ctx.adapter.parameters()[0].square().sum() + next(count)
    }


def on_the_base(ctx):
    if not ctx.specs(Spec):
        return None
    weight = ctx.adapter.targets()["1.weight"].parameter.requires_grad_(True)
    return {"mine": lambda step: weight.square().sum()}


METHODS = {
    "statistics are plain, finite and the same twice": (unsteady, terms),
    "old examples are kept only if declared": (hoarding, terms),
    "a term is a pure function of the adapter": (collect, wobbling),
    "a term trains the adapter alone": (collect, on_the_base),
    "a phase that does not name it is untouched": (
        collect,
        lambda ctx: {"mine": lambda step: ctx.adapter.parameters()[0].square().sum()},
    ),
}


def test_a_plain_method_holds():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_retention(collect, terms, SPEC))


@pytest.mark.parametrize("law", METHODS)
def test_one_fault_of_a_method_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    found = check_retention(*METHODS[law], SPEC)
    assert {r.law for r in found if r.ok is False} == {law}


def test_examples_may_be_kept_where_that_is_declared():
    """Replay says so."""
    found = check_retention(hoarding, terms, SPEC, keeps_examples=True)
    assert [r.law for r in found if r.ok is None] == [
        "old examples are kept only if declared"
    ]


# recoveries


def offer(scale, **changes):
    return evolve(Recovery("propose", "mine", Proposal(scale=scale)), **changes)


def shrinking(ctx, refusals, tried, spec):
    scales = (0.5, 0.25)
    return offer(scales[len(tried)]) if len(tried) < 2 else None


COUNT = itertools.count()

RECOVERIES = {
    "it ends": lambda ctx, refusals, tried, spec: offer(0.5 ** len(tried)),
    "an offer is complete": lambda c, r, tried, s: (
        None if tried else offer(1, method="other")
    ),
    "offers go one way": lambda c, r, tried, s: (
        offer(1 + len(tried)) if len(tried) < 2 else None
    ),
    "evidence is JSON": lambda c, r, tried, s: (
        None if tried else offer(1, evidence={"x": {1, 2}})
    ),
    "the same offers twice": lambda c, r, tried, s: (
        None if tried else offer(1, evidence={"call": next(COUNT)})
    ),
}


def test_a_plain_recovery_holds():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_recovery(shrinking, SPEC))


@pytest.mark.parametrize("law", RECOVERIES)
def test_one_fault_of_a_recovery_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    found = check_recovery(RECOVERIES[law], SPEC)
    assert {r.law for r in found if r.ok is False} == {law}


# observers


class Counting:
    """Counts steps."""

    def __init__(self, ctx):
        self.ctx, self.steps = ctx, 0

    def on_event(self, event):
        self.steps += event["event"] == "step"

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Trusting(Counting):
    """Takes every step to have a loss."""

    def on_event(self, event):
        if event["event"] == "step":
            self.steps += round(event["loss"] * 0) + 1


class Meddling(Counting):
    """Writes into the model."""

    def on_event(self, event):
        with torch.no_grad():
            self.ctx.model.get_parameter("1.bias").add_(1)


class Tensors(Counting):
    """Keeps a tensor as its state."""

    def state_dict(self):
        return {"steps": torch.tensor(self.steps)}


OBSERVERS = {
    "any stream of events": Trusting,
    "it only watches": Meddling,
    "its state is JSON": Tensors,
}


def test_a_plain_observer_holds():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_observer(lambda ctx: [Counting(ctx)], SPEC))


@pytest.mark.parametrize("law", OBSERVERS)
def test_one_fault_of_an_observer_breaks_exactly_its_law(law):
    """Each law catches what it is there for; where the stream raises, the other laws cannot be tested."""
    found = check_observer(lambda ctx: [OBSERVERS[law](ctx)], SPEC)
    broken = {r.law for r in found if r.ok is False}
    assert law in broken
    assert broken == {law} or law == "any stream of events"


def test_every_law_has_a_fault_that_it_catches():
    """No law is without proof that it can fail."""
    assert {law.name for law in retention.LAWS} == set(METHODS)
    assert {law.name for law in recoveries.LAWS} == set(RECOVERIES)
    assert {law.name for law in observers.LAWS} == set(OBSERVERS)
