"""Optimizers: the shipped ones hold to every law; each fault breaks exactly the law about it."""

from __future__ import annotations

import itertools

import pytest
import torch
from attrs import define

from mgk_core.config.resolve import structure_spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.testing.laws import assert_hold
from mgk_core.testing.optimizers import LAWS, check_optimizer

HOOKS = Hooks(load_plugins())


@define
class Held:
    """An adapter as an optimizer sees it."""

    held: list
    name: str = "held"

    def parameters(self):
        return self.held


def trainable(parameters):
    return [p for p in parameters if p.requires_grad]


def muon_and_adamw(parameters):
    """The library's two optimizers side by side, as one."""
    matrix, vector = parameters
    both = [
        torch.optim.Muon(
            [matrix], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
    ]
    if vector.requires_grad:
        both.append(
            torch.optim.AdamW([vector], lr=0.02, weight_decay=0.0, foreach=False)
        )
    return Several(both)


@define
class Several:
    """Optimizers that step together."""

    held: list

    def step(self):
        for optimizer in self.held:
            optimizer.step()

    def zero_grad(self):
        for optimizer in self.held:
            optimizer.zero_grad()


def schedule_free(parameters):
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(trainable(parameters), lr=0.05, foreach=False)
    optimizer.train()
    return optimizer


REFERENCES = {
    "sgd": (
        {"lr": 0.01, "momentum": 0.9},
        lambda ps: torch.optim.SGD(trainable(ps), lr=0.01, momentum=0.9, foreach=False),
    ),
    "adamw": (
        {"lr": 0.01, "weight_decay": 0.01},
        lambda ps: torch.optim.AdamW(
            trainable(ps), lr=0.01, weight_decay=0.01, foreach=False, fused=False
        ),
    ),
    "adafactor": (
        {"lr": 0.05},
        lambda ps: torch.optim.Adafactor(
            trainable(ps), lr=0.05, weight_decay=0.0, foreach=False
        ),
    ),
    "muon": ({"lr": 0.02}, muon_and_adamw),
    "adamw-schedule-free": ({"lr": 0.05}, schedule_free),
    "adamw-8bit": ({"lr": 0.01}, None),  # no float64 there: see tests/sgd
}


@pytest.mark.parametrize("type_", REFERENCES)
def test_shipped_optimizers_hold_to_every_law(type_):
    """Against torch's own loops, one parameter after the other, or the library's."""
    options, reference = REFERENCES[type_]
    spec = structure_spec(
        HOOKS.plugins.registry, "optimizer", {"type": type_, **options}
    )
    found = check_optimizer(
        lambda ps: HOOKS.make_optimizer(Held(ps), spec), type_, reference=reference,
        make_for=lambda adapter: HOOKS.make_optimizer(adapter, spec),
    )  # fmt: skip
    assert_hold(found)
    assert all(r.ok for r in found if reference or r.law != "equal to the reference")


def sgd(parameters, momentum=0.9):
    return torch.optim.SGD(trainable(parameters), lr=0.01, momentum=momentum)


class Dampened(torch.optim.SGD):
    """Steps a little shorter than it says."""

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.0099
        return super().step(closure)


COUNT = itertools.count(1)


def unsteady(parameters):
    """Begins elsewhere each time."""
    optimizer = sgd(parameters)
    for parameter in trainable(parameters):
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(
            parameter, next(COUNT) * 1e-5
        )
    return optimizer


class Amnesiac(torch.optim.SGD):
    """Saves no momentum."""

    def state_dict(self):
        found = super().state_dict()
        return {**found, "state": {}}


class Timid(torch.optim.SGD):
    """Takes steps that are too small to arrive anywhere."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1e-5, momentum=0.9)


class Greedy(torch.optim.SGD):
    """Decays every parameter that it was given, frozen or not."""

    def step(self, closure=None):
        done = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        parameter.mul_(0.99)
        return done


BROKEN = {
    "equal to the reference": (
        lambda ps: Dampened(trainable(ps), lr=0.01, momentum=0.9),
        sgd,
    ),
    "bit-equal twice": (unsteady, None),
    "resumes from its state": (
        lambda ps: Amnesiac(trainable(ps), lr=0.01, momentum=0.9),
        None,
    ),
    "converges": (lambda ps: Timid(trainable(ps)), None),
    "it trains a real adapter and nothing else": (sgd, None),
    "frozen parameters stay": (lambda ps: Greedy(ps, lr=0.01, momentum=0.9), None),
}


@pytest.mark.parametrize("law", BROKEN)
def test_one_fault_of_an_optimizer_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    make, reference = BROKEN[law]
    partial = law == "it trains a real adapter and nothing else"
    found = check_optimizer(
        make,
        reference=reference,
        make_for=lambda a: make(a.parameters()[: -1 if partial else None]),
    )
    assert {r.law for r in found if r.ok is False} == {law}


def test_an_optimizer_that_writes_to_the_base_is_caught():
    """Weight decay on every weight of the model, past the adapter's parameters."""

    def everything(adapter):
        targets = [t.parameter for t in adapter.targets().values()]
        return torch.optim.SGD(
            [*adapter.parameters(), *targets], lr=0.1, weight_decay=0.1
        )

    found = check_optimizer(sgd, make_for=everything)
    (row,) = [r for r in found if r.ok is False]
    assert "not the adapter's" in row.detail


def test_every_law_of_optimizers_has_a_fault_that_it_catches():
    """No law is without proof that it can fail."""
    assert {law.name for law in LAWS} == set(BROKEN)


def test_an_optimizer_without_a_reference_is_not_called_equal():
    """The row says that the law does not apply."""
    (row,) = [r for r in check_optimizer(sgd) if r.law == "equal to the reference"]
    assert row.ok is None
