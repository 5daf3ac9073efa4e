"""Merging all phases' deltas: each formula in float64 by hand, and the weights that a run ends with."""

import itertools

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError
from mgk_retention.ledger_merge import (
    LowRankDelta,
    magmax,
    task_arithmetic,
    thresholds,
    ties,
)
from mgk_retention.opcm import merged_deltas, projected

PHASE = {
    "adapter": {"type": "lora", "rank": 3, "alpha": 8, "targets": ["layer1", "layer3"]},
    "optimizer": {"type": "adamw", "lr": 4e-3},
    "train": {"steps": 6},
}


@st.composite
def stacks(draw, least=1):
    """Deltas of several phases, (phases, out, in), float64, some numbers zero."""
    seed = draw(st.integers(0, 999))
    shape = draw(st.tuples(st.integers(least, 4), st.integers(1, 5), st.integers(1, 6)))
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, dtype=torch.float64, generator=generator)
    return found * (torch.rand(shape, generator=generator) > 0.2)


def places(deltas):
    return itertools.product(*map(range, deltas.shape[1:]))


@given(stacks())
def test_magmax_by_hand(deltas):
    """In each place the task vector (the sum up to a phase) of largest magnitude."""
    found = magmax(deltas)
    for i, j in places(deltas):
        sums = list(itertools.accumulate(deltas[:, i, j].tolist()))
        assert found[i, j].item() == pytest.approx(max(sums, key=abs), abs=1e-12)


@given(stacks(), st.floats(0.1, 1.0))
def test_ties_by_hand(deltas, keep):
    """Trimmed over all of a phase's numbers, one sign elected, the mean of those that agree."""
    levels = []
    for delta in deltas:
        sizes = sorted(delta.abs().flatten().tolist(), reverse=True)
        levels.append(sizes[max(1, round(keep * len(sizes))) - 1])
    found = ties(deltas, torch.tensor(levels, dtype=torch.float64))
    for i, j in places(deltas):
        values = [
            v if abs(v) >= level else 0.0
            for v, level in zip(deltas[:, i, j].tolist(), levels, strict=True)
        ]
        sign = (sum(values) > 0) - (sum(values) < 0)
        chosen = [v for v in values if v * sign > 0]
        expected = sum(chosen) / len(chosen) if chosen else 0.0
        assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_thresholds_are_over_all_weights_of_a_phase():
    """A phase's largest numbers are kept wherever they are, in one weight or the other."""
    one = torch.tensor([[10.0, 9.0, 8.0]])
    other = torch.tensor([[1.0, 2.0, 3.0]])
    eye = torch.ones(1, 1)
    deltas = {"a": [LowRankDelta(one, eye)], "b": [LowRankDelta(other, eye)]}
    assert thresholds(deltas, 0.5).item() == pytest.approx(8.0, rel=2e-5)
    assert thresholds(deltas, 1.0).item() == pytest.approx(1.0, rel=2e-5)


@given(stacks(least=2))
def test_one_delta_is_itself(deltas):
    """A single phase is what every rule makes of it; task arithmetic adds."""
    one = deltas[:1]
    assert torch.equal(magmax(one), one[0])
    assert torch.equal(ties(one, torch.zeros(1, dtype=one.dtype)), one[0])
    assert torch.allclose(task_arithmetic(deltas), sum(deltas.unbind()))


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_the_projection_by_its_sum(shape):
    """P(X) = Σ ⟨X, u_i v_jᵀ⟩ u_i v_jᵀ over i ≠ j that are not both among the first k."""
    merged, x, alpha = random(*shape, seed=1), random(*shape, seed=2), 0.5
    u, s, vh = torch.linalg.svd(merged)
    shares = [float(s[: i + 1].sum() / s.sum()) for i in range(len(s))]
    k = next(i for i, share in enumerate(shares) if share > alpha)
    expected = torch.zeros_like(x)
    for i, j in itertools.product(range(shape[0]), range(shape[1])):
        if i != j and not (i < k and j < k):
            basis = torch.outer(u[:, i], vh[j])
            expected += (x * basis).sum() * basis
    found = projected(x, merged, alpha)
    assert k > 0
    assert torch.allclose(found, expected, atol=1e-12)
    # What was merged is projected away: a task vector and its own delta give the same.
    assert torch.allclose(projected(merged + x, merged, alpha), found, atol=1e-12)


def test_opcm_keeps_the_mean_norm_of_the_task_vectors():
    """‖τ_t'‖ is the mean of all ‖τ‖, over the weights together; λ_t satisfies the recursion."""
    merged = {"a": random(4, 6, seed=1), "b": random(5, 3, seed=2)}
    fresh = {"a": random(4, 6, seed=3), "b": random(5, 3, seed=4)}
    states = torch.tensor([[1.0, 2.0], [1.7, 4.0]], dtype=torch.float64)
    changes, state = merged_deltas(merged, fresh, states, 0.5)
    after = {n: merged[n] + changes[n] for n in merged}

    def norm(tensors):
        return torch.cat([t.flatten() for t in tensors.values()]).norm()

    own = norm({n: merged[n] + fresh[n] for n in merged})
    assert norm(after) == pytest.approx(float(2 + 4 + own) / 3)
    assert float(state[1]) == pytest.approx(float(own))
    for name, value in after.items():
        summed = 1.7 * merged[name] + projected(fresh[name], merged[name], 0.5)
        assert torch.allclose(float(state[0]) * value, summed)


def phases(method, options, count=3):
    """Run phases in memory; return the base's weights, each phase's result, and the bundle."""
    bundle = mgk.load_base("reference", device="cpu")
    before = {k: v.clone() for k, v in base_state_dict(bundle.model).items()}
    table, last, results = PHASE | {"retention": {method: options}}, None, []
    for number in range(count):
        data = mgk.load_data(bundle, "teacher", seed=number, size=64, items=24)
        last = mgk.run_phase(
            bundle, data, table, after=last, then=[table] * (count - number - 1)
        )
        results.append(last)
    return before, results, bundle


def deltas_of(results, weight):
    """Each phase's delta as it was trained, float64."""
    found = []
    for result in results:
        a, b = (result.adapter[f"{weight}/{side}"].double() for side in "ab")
        found.append(8 / 3 * b @ a)
    return torch.stack(found)


@pytest.mark.parametrize("method", ["task-arithmetic", "magmax", "ties"])
def test_a_run_ends_with_the_merged_deltas(method):
    """W_0 + λ M(Δ_1 … Δ_T); before the last phase, plain sums."""
    before, results, bundle = phases(method, {"scale": 0.75})
    weights = [
        w for w in before if w.startswith(("layer1", "layer3")) and w.endswith("weight")
    ]
    deltas = {w: deltas_of(results, w) for w in weights}
    sizes = torch.cat([deltas[w].abs().flatten(1) for w in weights], dim=1)
    keep = round(0.2 * sizes.shape[1])
    levels = sizes.sort(dim=1, descending=True).values[:, keep - 1]
    rules = {
        "task-arithmetic": task_arithmetic,
        "magmax": magmax,
        # a little lower than the number itself, which the run knows in fp32 only
        "ties": lambda d: ties(d, levels * (1 - 1e-5)),
    }
    for weight in weights:
        expected = before[weight].double() + 0.75 * rules[method](deltas[weight])
        found = base_state_dict(bundle.model)[weight].double()
        assert (found - expected).abs().max() <= 1e-6
    assert not results[0].entry.transforms
    assert results[-1].entry.transforms[0].startswith(method)


def test_opcm_in_a_run():
    """Each boundary's weights are W_0 + τ', from the deltas as they were trained."""
    before, results, bundle = phases("opcm", {"alpha": 0.5})
    weights = [
        w for w in before if w.startswith(("layer1", "layer3")) and w.endswith("weight")
    ]
    deltas = {w: deltas_of(results, w) for w in weights}
    merged = {w: torch.zeros_like(deltas[w][0]) for w in weights}
    states = torch.zeros(0, 2, dtype=torch.float64)
    for number in range(3):
        fresh = {w: deltas[w][number] for w in weights}
        changes, state = merged_deltas(merged, fresh, states, 0.5)
        merged = {w: merged[w] + changes[w] for w in weights}
        states = torch.cat([states, state[None]])
    for weight in weights:
        found = base_state_dict(bundle.model)[weight].double() - before[weight].double()
        assert (found - merged[weight]).norm() <= 1e-4 * merged[weight].norm()


def test_what_does_not_go_together_is_refused():
    """Two methods that each replace the delta; an adapter without factors."""
    bundle = mgk.load_base("reference", device="cpu")
    data = mgk.load_data(bundle, "teacher", seed=1, size=64, items=24)
    both = PHASE | {"retention": {"ties": {}, "opcm": {}}}
    with pytest.raises(InputError, match="use one of the two"):
        mgk.run_phase(bundle, data, both)
    dense = PHASE | {
        "adapter": {"type": "full", "targets": ["layer1"]},
        "retention": {"ties": {}},
    }
    with pytest.raises(InputError, match="no low-rank factors"):
        mgk.run_phase(bundle, data, dense)


def test_kl_to_the_base_keeps_calibration_text_only():
    """No example of a phase is kept; the term is the KL from the model before the phase on calibration batches."""
    bundle = mgk.load_base("reference", device="cpu")
    data = mgk.load_data(bundle, "teacher", seed=1, size=64, items=24)
    batches = tuple(data.train.batch(range(i, i + 8)) for i in range(0, 32, 8))
    data = attrs.evolve(data, calibration=batches)
    table = PHASE | {
        "retention": {"self-distillation": {"on": "base", "distance": "squared"}}
    }
    one = mgk.run_phase(bundle, data, table, then=[table])
    assert not one.statistics
    assert one.kept_bytes > 0
