"""Transforms, data readers and models: a fault breaks exactly the law about it."""

from __future__ import annotations

import itertools

import pytest
import torch
from attrs import define, evolve

from mgk_core.contract.bundle import PhaseData, Probe, Tokens
from mgk_core.contract.errors import InputError
from mgk_core.testing import models, readers, transforms
from mgk_core.testing.laws import assert_hold
from mgk_core.testing.models import check_model
from mgk_core.testing.readers import check_reader
from mgk_core.testing.small_run import SmallBundle, SmallTrainSet
from mgk_core.testing.transforms import check_transform

# transforms


@define
class Scaled:
    """Multiply the inputs' side by a diagonal matrix."""

    name: str = "scaled"

    def factor(self, width, like):
        return torch.linspace(0.5, 1, width).to(like)

    def right(self, weight, a):
        return a * self.factor(a.shape[-1], a)

    def delta(self, weight, delta, rows):
        return delta * self.factor(delta.shape[1], delta)


class Dividing(Scaled):
    """Divides by the sign of the largest entry, which is 0 for a delta of zero."""

    def delta(self, weight, delta, rows):
        return super().delta(weight, delta, rows) / delta.abs().max().sign()


class Drawing(Scaled):
    """Draws from torch's global generator."""

    def delta(self, weight, delta, rows):
        torch.rand(1)
        return super().delta(weight, delta, rows)


class Normed(Scaled):
    """Looks at all rows that it is given."""

    right = None

    def delta(self, weight, delta, rows):
        return delta / (1 + delta.abs().sum())


class Apart(Scaled):
    """Treats factors otherwise than deltas."""

    def right(self, weight, a):
        return a


TRANSFORMS = {
    "finite and of the same shape": Dividing,
    "pure": Drawing,
    "block by block equals all at once": Normed,
    "factors and deltas agree": Apart,
}


def test_a_plain_transform_holds():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_transform(Scaled))


@pytest.mark.parametrize("law", TRANSFORMS)
def test_one_fault_of_a_transform_breaks_exactly_its_law(law):
    """Each law catches what it is there for; NaN differs from itself, so it breaks purity too."""
    found = {r.law for r in check_transform(TRANSFORMS[law]) if r.ok is False}
    assert law in found
    assert found <= {
        law,
        "pure",
        "block by block equals all at once",
        "factors and deltas agree",
    }


# readers

IDS = torch.randint(0, 7, (12, 6), generator=torch.Generator().manual_seed(3)).tolist()
EXAMPLES = [Tokens(tuple(i), tuple(i)) for i in IDS]


def read(bundle, options):
    """Read the good data."""
    if "path" in options:
        text = options["path"].read_text()
        if "bad" in text:
            raise InputError(f"{options['path']}:1: bad")
    train = SmallTrainSet(bundle, EXAMPLES[4:], "digest")
    probe = Probe("p", "", "perplexity", EXAMPLES[:4], higher_is_better=False)
    return PhaseData(train, (probe,))


def bad(folder):
    """Write a bad file."""
    (folder / "x.txt").write_text("bad")
    return {"path": folder / "x.txt"}


COUNT = itertools.count()


def restless(bundle, options):
    data = read(bundle, options)
    data.train.digest = str(next(COUNT))
    return data


class Shuffling(SmallTrainSet):
    """Gives each row once, then the next."""

    def batch(self, rows):
        self.asked = getattr(self, "asked", -1) + 1
        return super().batch([(r + self.asked) % len(self) for r in rows])


def shuffled(bundle, options):
    data = read(bundle, options)
    return evolve(data, train=Shuffling(bundle, data.train.examples, "digest"))


def unlearnable(bundle, options):
    data = read(bundle, options)
    first = Tokens(EXAMPLES[4].ids, (-100,) * 5 + (EXAMPLES[4].labels[5],))
    return evolve(
        data, train=SmallTrainSet(Counting(), [first, *data.train.examples], "digest")
    )


class Counting(SmallBundle):
    """Counts one token fewer."""

    def pack(self, examples):
        return [
            evolve(e, labels=(-100,) * len(e.ids)) if e.labels[0] < 0 else e
            for e in examples
        ]

    def loss(self, batch):
        if all(label < 0 for e in batch for label in e.labels):
            return torch.zeros(()), torch.zeros(())
        return super().loss([e for e in batch if e.labels[0] >= 0])


def leaking(bundle, options):
    data = read(bundle, options)
    return evolve(data, train=SmallTrainSet(bundle, EXAMPLES, "digest"))


def careless(bundle, options):
    return read(bundle, {})


READERS = {
    "reading twice gives the same data": restless,
    "a batch is a function of its rows": shuffled,
    "batches can be learned from": unlearnable,
    "probes are named and held out": leaking,
    "a bad row is an error that names it": careless,
}


def test_a_plain_reader_holds():
    """The good one, of which the others differ in one thing."""
    assert all(r.ok for r in check_reader(read, bad=bad))


@pytest.mark.parametrize("law", READERS)
def test_one_fault_of_a_reader_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    bundle = Counting if law == "batches can be learned from" else SmallBundle
    found = check_reader(READERS[law], bad=bad, bundle=bundle)
    assert {r.law for r in found if r.ok is False} == {law}


# models


class Averaging(SmallBundle):
    """Returns the number of examples instead of the number of tokens."""

    def loss(self, batch):
        total, _ = super().loss(batch)
        return total, torch.tensor(float(len(batch)))


class Leaking(SmallBundle):
    """Lets an example see the end of the one packed before it."""

    def loss(self, batch):
        total, count = super().loss(batch)
        ends = [e.ids[-1] for e in batch[:-1]]
        return total + 0.1 * sum(ends), count


class Normalising(SmallBundle):
    """Scores options by their mean instead of their sum."""

    def score(self, items):
        return [
            evolve(
                s,
                logprob=tuple(x / n for x, n in zip(s.logprob, s.tokens, strict=True)),
            )
            for s in super().score(items)
        ]


class Training(SmallBundle):
    """Leaves the model in training mode."""

    def outputs(self, batch, positions=None):
        self.model.train()
        return super().outputs(batch, positions)


MODELS = {
    "loss is a sum and a count": Averaging,
    "packing does not leak": Leaking,
    "score is the loss": Normalising,
    "asking changes nothing": Training,
}


def test_a_plain_model_holds():
    """The good one, of which the others differ in one thing."""
    assert_hold(check_model(SmallBundle))


@pytest.mark.parametrize("law", MODELS)
def test_one_fault_of_a_model_breaks_exactly_its_law(law):
    """Each law catches what it is there for."""
    assert {r.law for r in check_model(MODELS[law]) if r.ok is False} == {law}


def test_every_law_has_a_fault_that_it_catches():
    """No law is without proof that it can fail."""
    assert {law.name for law in transforms.LAWS} == set(TRANSFORMS)
    assert {law.name for law in readers.LAWS} == set(READERS)
    assert {law.name for law in models.LAWS} == set(MODELS)
