"""Deltas as they were merged: applied once, kept, and read back to the same merge."""

import pytest
import torch
from attrs import frozen
from torch import nn

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.outcome import Proposal
from mgk_core.run.stored_transforms import (
    StoredDeltas,
    StoredFactors,
    materialise,
    stored_transform,
)

INSIDE, OUTSIDE, RANK, ALPHA = 7, 5, 2, 6.0


@frozen
class OnInputs:
    """ΔW → ΔW · M, as a change of the factor a."""

    name: str
    m: torch.Tensor

    def right(self, weight, a):
        return a @ self.m

    def delta(self, weight, delta, rows):
        return delta @ self.m


@frozen
class Halved:
    """ΔW → ΔW / 2, on the dense delta only."""

    name: str = "halved"

    def delta(self, weight, delta, rows):
        return delta / 2


@pytest.fixture
def trained():
    """Return (model, adapter) with a delta that is not zero; alpha is not the rank, no side equal."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(INSIDE, OUTSIDE), nn.Tanh(), nn.Linear(OUTSIDE, 3))
    adapter = mgk.attach(model, "lora", rank=RANK, alpha=ALPHA, targets=["0", "2"])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return model, adapter


def delta_of(model, adapter, name):
    weight = base_state_dict(model)[name].detach()
    return adapter.merged_weight(name, weight) - weight


def test_without_transforms_nothing_is_kept(trained):
    """The proposal is the same object; the adapter alone is enough to rebuild the phase."""
    model, adapter = trained
    proposal = Proposal(scale=0.5)
    assert materialise(adapter, proposal, base_state_dict(model)) == (proposal, {})
    assert stored_transform("none", {}) is None


def test_transforms_of_inputs_are_kept_as_factors(trained):
    """Two of them chain; the kept factor gives the very result, and low rank stays low rank."""
    model, adapter = trained
    torch.manual_seed(4)
    one, other = (torch.randn(INSIDE, INSIDE) for _ in range(2))
    own = {
        "0.weight": (one, other),
        "2.weight": (torch.eye(OUTSIDE), 2 * torch.eye(OUTSIDE)),
    }

    @frozen
    class Own(OnInputs):
        place: int = 0

        def right(self, weight, a):
            return a @ own[weight][self.place]

    transforms = (Own("first", one, 0), Own("second", other, 1))
    proposal, kept = materialise(
        adapter, Proposal(transforms=transforms), base_state_dict(model)
    )
    assert set(kept) == {"factor:0.weight", "factor:2.weight"}
    (made,) = proposal.transforms
    assert (type(made), made.name) == (StoredFactors, "first+second")
    again = stored_transform("first+second", kept)
    a = adapter.factors("0.weight").a.detach()
    torch.testing.assert_close(again.right("0.weight", a), a @ one @ other)
    with pytest.raises(RuntimeError, match="kept as factors"):
        again.delta("0.weight", a, None)


def test_other_transforms_are_kept_as_deltas(trained):
    """A dense change is kept dense, whole or by rows; scale is applied later, by the merge."""
    model, adapter = trained
    proposal = Proposal(scale=0.25, transforms=(Halved(),))
    before = delta_of(model, adapter, "0.weight")
    found, kept = materialise(adapter, proposal, base_state_dict(model))
    assert found.scale == 0.25
    assert isinstance(found.transforms[0], StoredDeltas)
    again = stored_transform("halved", kept)
    torch.testing.assert_close(again.delta("0.weight", before, None), before / 2)
    rows = slice(1, 3)
    torch.testing.assert_close(
        again.delta("0.weight", before[rows], rows), before[rows] / 2
    )


def test_a_merge_from_what_was_kept_is_the_same_merge(trained):
    """Rebuilding with the stored transform gives the bits of the merge with the transform itself."""
    import copy

    model, adapter = trained
    weights = base_state_dict(model)
    first = copy.deepcopy(weights)
    proposal, kept = materialise(adapter, Proposal(transforms=(Halved(),)), weights)
    stored = stored_transform("halved", kept)
    for name in adapter.targets():
        if weights[name].dim() > 1:
            delta = delta_of(model, adapter, name)
            once = first[name] + proposal.transforms[0].delta(name, delta, None)
            assert torch.equal(once, first[name] + stored.delta(name, delta, None))
