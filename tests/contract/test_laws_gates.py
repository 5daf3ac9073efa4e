"""Gates and evaluators: the shipped ones hold to every law; each fault breaks exactly the law about it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from attrs import evolve

from mgk_core.contract.outcome import Refusal, Verdict
from mgk_core.contract.specs import Spec
from mgk_core.host.manager import load_plugins
from mgk_core.testing import gates, probes
from mgk_core.testing.check import check_loaded
from mgk_core.testing.gates import check_gate
from mgk_core.testing.probes import check_evaluator, standard_probes


def test_shipped_gates_and_evaluators_hold_to_every_law():
    """Every gate refuses something, and every metric is answered for."""
    found = check_loaded(load_plugins(), "validation")
    assert not [r for r in found if r.ok is False]
    held = {
        (r.law, r.subject)
        for r in found
        if r.ok and not r.subject.startswith("recover ")
    }
    kinds = [f"gate {t}" for t in ("max-drop", "min-gain", "keep-base", "threshold")]
    metrics = [f"metric {p.metric}" for p in standard_probes()]
    assert held == {(law.name, g) for law in gates.LAWS for g in kinds} | {
        (law.name, m) for law in probes.LAWS for m in metrics
    }


SPEC = Spec(type="mine")


def drop(before, after):
    return (
        before[-1]["kit-early"].value - after["kit-early"].value
    )  # of a loss: positive is better


def verdict(refused, **changes):
    refusal = Refusal("mine", "it became worse", "kit-early", {"drop": 1.0})
    return Verdict(
        accept=not refused, refusals=(evolve(refusal, **changes),) if refused else ()
    )


def good(ctx, before, after):
    return verdict(not drop(before, after) >= -0.2)


def nameless(ctx, before, after):
    return verdict(not drop(before, after) >= -0.2, evidence={})


def banded(ctx, before, after):
    """Wants the score where it was: it refuses a gain too."""
    return verdict(not abs(drop(before, after)) <= 0.3)


def moody(count=None):
    """Refuses with other figures each time."""
    count = itertools.count()
    return lambda ctx, before, after: verdict(
        not drop(before, after) >= -0.2, evidence={"call": next(count)}
    )


def lenient(ctx, before, after):
    """Compares the wrong way round, so that NaN passes."""
    return verdict(drop(before, after) < -0.2)


GATES = {
    "a refusal names its evidence": nameless,
    "better is never refused": banded,
    "the same answer twice": moody(),
    "NaN does not pass": lenient,
}


def test_a_plain_gate_holds_to_every_law():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_gate(good, SPEC))


@pytest.mark.parametrize("law", GATES)
def test_one_fault_of_a_gate_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    assert {r.law for r in check_gate(GATES[law], SPEC) if r.ok is False} == {law}


def measure(bundle, probe):
    """Measure the loss of each item."""
    items = tuple(
        float(s / c) for s, c in (bundle.loss([item]) for item in probe.items)
    )
    mean = math.fsum(items) / len(items)
    spread = math.sqrt(
        math.fsum((x - mean) ** 2 for x in items) / (len(items) - 1) / len(items)
    )
    return gates.Score(
        probe.name,
        probe.metric,
        mean,
        len(items),
        spread,
        probe.higher_is_better,
        per_item=items,
    )


def with_dropout(bundle, probe):
    """Measure in training mode, with a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bundle.model.train()
        found = measure(bundle, probe)
        bundle.model.eval()
    return found


def drawing(bundle, probe):
    """Draw a sample of the items, of which it then takes none."""
    torch.randperm(len(probe.items))
    return measure(bundle, probe)


def wrong_stderr(bundle, probe):
    """Forget the root of n."""
    found = measure(bundle, probe)
    return evolve(found, stderr=found.stderr * math.sqrt(found.n))


EVALUATORS = {
    "dropout is off": with_dropout,
    "the same score twice": drawing,
    "n and stderr fit the items": wrong_stderr,
}


def test_a_plain_evaluator_holds_to_every_law():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_evaluator(measure, standard_probes()[1]))


@pytest.mark.parametrize("law", EVALUATORS)
def test_one_fault_of_an_evaluator_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    assert {
        r.law
        for r in check_evaluator(EVALUATORS[law], standard_probes()[1])
        if r.ok is False
    } == {law}


def test_every_law_of_gates_and_evaluators_has_a_fault_that_it_catches():
    """No law is without proof that it can fail."""
    assert {law.name for law in gates.LAWS} == set(GATES)
    assert {law.name for law in probes.LAWS} == set(EVALUATORS)
