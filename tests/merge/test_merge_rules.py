"""The transforms dare and wise-ft against their formulas, and in a merge."""

import pytest
import torch

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_merge.rules import DareSpec, WiseSpec


def delta(seed=0, shape=(40, 50)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.9])
def test_dare_drops_a_share_and_rescales_the_rest(drop):
    """Each number is 0 or δ / (1 − p); about p of them are 0, and the expected value is δ."""
    given = delta()
    found = DareSpec(type="dare", drop=drop).change("w", given)
    kept = found != 0
    assert torch.equal(found[kept], given[kept] / (1 - drop))
    share = 1 - kept.double().mean()
    assert abs(share - drop) <= 5 * (drop * (1 - drop) / given.numel()) ** 0.5
    many = torch.stack(
        [DareSpec(type="dare", drop=drop).change(str(i), given) for i in range(300)]
    )
    error = (many.mean(0) - given).abs() / given.abs()
    assert error.mean() <= (drop / (1 - drop) / 300) ** 0.5 + 1e-12


def test_phases_have_masks_of_their_own_and_a_rebuild_the_same():
    """The mask depends on the delta."""
    spec = DareSpec(type="dare", drop=0.5)
    one, other = spec.change("w", delta(1)), spec.change("w", delta(2))
    assert torch.equal(one, spec.change("w", delta(1)))
    assert not torch.equal(one == 0, other == 0)


def test_wise_ft_interpolates():
    """(1 − α) θ_{t−1} + α θ_t, in float64 and in the weights of a phase."""
    before, change = delta(1), delta(2)
    found = before + WiseSpec(type="wise-ft", alpha=0.3).change("w", change)
    assert torch.allclose(found, 0.7 * before + 0.3 * (before + change))


def test_wise_ft_in_a_phase():
    """The merged weights are half way between the base and what was trained."""
    weights = []
    for transform in ({}, {"wise-ft": {"alpha": 0.5}}):
        bundle = mgk.load_base("reference", device="cpu")
        zero = base_state_dict(bundle.model)["layer1.weight"].clone()
        data = mgk.load_data(bundle, "teacher", seed=1, size=64, items=24)
        table = {
            "adapter": {"type": "lora", "rank": 3, "alpha": 8, "targets": ["layer1"]},
            "optimizer": {"type": "adamw", "lr": 4e-3},
            "train": {"steps": 6},
            "transform": transform,
        }
        mgk.run_phase(bundle, data, table)
        weights.append(base_state_dict(bundle.model)["layer1.weight"] - zero)
    whole, half = weights
    assert whole.abs().max() > 1e-3
    assert (half - whole / 2).abs().max() <= 1e-6
