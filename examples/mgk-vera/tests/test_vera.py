"""VeRA: its formula, what it trains and shares, and three phases of it under mgk's merge.

Needs the installed distribution: `pip install ./examples/mgk-vera`.
"""

import copy

import pytest
import torch
from torch import nn

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError
from mgk_core.testing import assert_hold, check_adapter, check_plugin


def network(*, tied=False):
    """5 → 9 → 4, so that no shape is square; with ``tied``, a head that shares the embedding's weight."""
    torch.manual_seed(0)
    if not tied:
        return nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 4))
    model = nn.Sequential(
        nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
    )
    model[2].weight = model[0].weight
    return model


def train(model, adapter, steps=30, seed=1):
    """Take a few steps towards random targets, so that no trained vector stays where it began."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(16, 5, generator=generator),
        torch.randn(16, 4, generator=generator),
    )
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return x


def dense(adapter, name):
    """ΔW = Λ_b B Λ_d A in float64, straight from the paper's equation 2."""
    state = {k: v.double() for k, v in adapter.state_dict().items()}
    d, b = state[f"{name}/d"], state[f"{name}/b"]
    a, big_b = state["projections/a"], state["projections/b"]
    rows, cols = adapter.targets()[name].parameter.shape
    return torch.diag(b) @ big_b[:rows] @ torch.diag(d) @ a[:, :cols]


def test_the_live_output_is_the_papers_formula():
    """output = x Wᵀ + b ∘ (d ∘ (x Aᵀ)) Bᵀ, against a dense float64 delta."""
    model = network()
    adapter = mgk.attach(model, "vera", rank=6, targets=["all-linear"])
    x = train(model, adapter)
    wide = copy.deepcopy(base_state_dict(model))
    reference = x.double()
    for i, name in enumerate(("0.weight", "2.weight")):
        weight = wide[name].double() + dense(adapter, name)
        reference = reference @ weight.T + wide[name.replace("weight", "bias")].double()
        reference = reference if i else nn.functional.gelu(reference)
    error = (model(x).double() - reference).norm() / reference.norm()
    assert (
        error < 8 * torch.finfo(torch.float32).eps
    )  # two layers, inner dimensions of at most 9


def test_only_two_vectors_a_weight_are_trained_and_the_projections_are_shared():
    """Each target has d (rank) and b (out) of its own; A and B exist once and stay as they were."""
    model = network()
    adapter = mgk.attach(model, "vera", rank=6)
    assert [tuple(p.shape) for p in adapter.parameters()] == [(6,), (9,), (6,), (4,)]
    before = adapter.state_dict()["projections/a"].clone()
    train(model, adapter)
    assert torch.equal(adapter.state_dict()["projections/a"], before)
    buffers = {
        b.data_ptr()
        for n, b in model.named_buffers(remove_duplicate=False)
        if n.endswith("shared.a")
    }
    assert len(buffers) == 1


def test_three_trained_phases_merge_to_what_was_live():
    """Attach, train, merge, three times: each time the merged model computes what the unmerged one did."""
    model = network()
    original = copy.deepcopy(base_state_dict(model))
    reports = []
    for phase in range(3):
        adapter = mgk.attach(
            model, "vera", name=f"phase{phase}", rank=6, projection_seed=phase
        )
        x = train(model, adapter, seed=phase)
        live = model(x).detach()
        reports.append(mgk.merge(model, adapter))
        assert (model(x) - live).norm() / live.norm() <= 1e-6
    assert not torch.equal(base_state_dict(model)["0.weight"], original["0.weight"])
    for report in reversed(reports):
        mgk.rollback(model, report)
    assert all(torch.equal(t, original[n]) for n, t in base_state_dict(model).items())


def test_a_tied_weight_is_refused_before_anything_changes():
    """A head that shares the embedding's weight cannot take a delta of its own."""
    model = network(tied=True)
    before = list(model.state_dict())
    with pytest.raises(InputError, match="tied"):
        mgk.attach(model, "vera", rank=4, targets=["2"])
    assert list(model.state_dict()) == before


def test_a_wrong_target_is_answered_with_the_nearest():
    """A pattern that matches nothing is an error, not an adapter that does nothing."""
    with pytest.raises(InputError, match="matches no linear module"):
        mgk.attach(network(), "vera", targets=["q_proj"])


def test_its_state_makes_it_again():
    """state_dict and load_state_dict carry vectors and projections; a misfit is named."""
    model, other = network(), network()
    adapter = mgk.attach(model, "vera", rank=6)
    x = train(model, adapter)
    fresh = mgk.attach(other, "vera", rank=6, projection_seed=9)
    fresh.load_state_dict({k: v.clone() for k, v in adapter.state_dict().items()})
    assert torch.equal(other(x), model(x))
    with pytest.raises(InputError, match="missing 0.weight/d"):
        fresh.load_state_dict(
            {k: v for k, v in adapter.state_dict().items() if k != "0.weight/d"}
        )


def test_the_output_projection_of_torchs_attention_is_no_target():
    """Its weight is used without a call of the module, so a delta on it would be merged and never live."""
    with pytest.raises(InputError, match="matches no linear module"):
        mgk.attach(nn.MultiheadAttention(12, 3), "vera", targets=["out_proj"])


def test_it_holds_to_the_laws_of_the_kit():
    """`mgk check-plugin vera`: every law that applies holds."""
    results = check_plugin("vera")
    assert [r for r in results if r.ok is False] == []
    assert sum(r.ok is True for r in results) >= 12


def test_it_holds_to_the_laws_of_adapters():
    """Every law of mgk's conformance kit, on the models that have a linear layer."""
    assert_hold(
        check_adapter(
            lambda model, name: mgk.attach(model, "vera", name=name, rank=6),
            kinds=("linear", "mixed"),
        )
    )
