"""The conformance tests of losses: the shipped ones hold, and each fault breaks the test about it."""

import itertools

import pytest
import torch
from attrs import frozen

from mgk_core.contract.errors import InputError
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_core.contract.specs import LossSpec
from mgk_core.host.manager import load_plugins
from mgk_core.testing.check import check_loaded
from mgk_core.testing.objectives import check_objective

SPEC = LossSpec(type="mine")
calls = itertools.count()


class Plain(Objective):
    """The likelihood through ``predictions``."""

    def __init__(self, ctx):
        self.ctx = ctx

    def batch(self, rows):
        return self.ctx.data.train.batch(rows)

    def loss(self, batch):
        nll = -self.ctx.bundle.predictions(batch).logprobs()
        return ObjectiveLoss(
            nll.sum(), torch.tensor(float(len(nll))), {"nll": nll.detach()}
        )


class Vector(Plain):
    def loss(self, batch):
        found = super().loss(batch)
        return ObjectiveLoss(found.total[None], found.count)


class Wobbling(Plain):
    def loss(self, batch):
        found = super().loss(batch)
        return ObjectiveLoss(found.total + next(calls), found.count)


class Detached(Plain):
    def loss(self, batch):
        found = super().loss(batch)
        return ObjectiveLoss(found.total.detach(), found.count)


class Empty(Plain):
    def loss(self, batch):
        found = super().loss(batch)
        return ObjectiveLoss(found.total, found.count * 0)


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (Vector, "a loss is a finite sum with a count"),
        (Empty, "a loss is a finite sum with a count"),
        (Wobbling, "the same rows give the same loss"),
        (Detached, "the adapter learns, and nothing else"),
    ],
)
def test_a_fault_breaks_the_test_about_it(make, law):
    """The test of that property fails; a right objective passes them all."""
    assert all(r.ok for r in check_objective(Plain, SPEC))
    assert law in {r.law for r in check_objective(make, SPEC) if r.ok is False}


def test_a_loss_that_accepts_none_of_the_small_data_is_not_tested():
    """The reason of its own ``check`` is reported."""

    @frozen(kw_only=True)
    class Picky(LossSpec):
        """Accepts nothing."""

        def check(self, data, bundle):
            raise InputError("needs pictures")

    results = check_objective(Plain, Picky(type="mine"))
    assert {r.ok for r in results} == {None}
    assert "needs pictures" in results[0].detail


def test_the_shipped_losses_hold():
    """Each loss of mgk passes every test on the data that it takes."""
    found = [
        r for r in check_loaded(load_plugins(), "preference") if "loss" in r.subject
    ]
    assert not [r for r in found if not r.ok]
    assert len({r.subject for r in found}) == 6
