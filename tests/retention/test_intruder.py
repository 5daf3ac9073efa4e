"""intruder-repair: which directions it finds, against PEFT's own function, and in a run."""

import pytest
import torch
from attrs import evolve
from torch import nn

import mgk
from mgk_core.contract.errors import InputError
from mgk_retention.intruder import repaired
from mgk_retention.specs import IntruderSpec

SPEC = IntruderSpec(type="intruder-repair")


def test_a_planted_direction_is_found_and_scaled():
    """W is diagonal; a strong rank-one delta between its singular vectors is the one intruder."""
    weight = torch.diag(torch.arange(12.0, 0.0, -1.0))[:, :9]
    planted = torch.ones(12) / 12**0.5
    delta = 40.0 * torch.outer(planted, torch.ones(9) / 3)
    found, count = repaired(weight, delta, SPEC)
    assert count >= 1
    merged, plain = weight + found, weight + delta
    before, after = (
        torch.linalg.svdvals(plain)[0],
        planted @ merged @ (torch.ones(9) / 3),
    )
    assert after == pytest.approx(0.75 * before.item(), rel=0.05)


def test_a_change_along_old_directions_is_left_alone():
    """A delta that only stretches W's own singular vectors has no intruder, and stays bit-identical."""
    weight = torch.diag(torch.arange(8.0, 0.0, -1.0))
    delta = torch.diag(torch.full((8,), 0.25))
    found, count = repaired(weight, delta, SPEC)
    assert count == 0
    assert torch.equal(found, delta)


def test_the_same_as_peft():
    """At full rank, where PEFT cuts nothing, both give the same weights."""
    peft = pytest.importorskip("peft")
    intruders = pytest.importorskip("peft.tuners.lora.intruders")
    torch.manual_seed(0)
    layer = nn.Linear(9, 7, bias=False)
    weight = layer.weight.detach().clone()
    config = peft.LoraConfig(r=7, lora_alpha=14, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(layer), config)
    module = model.base_model.model[0]
    with torch.no_grad():
        module.lora_B["default"].weight.normal_(std=0.5)
    delta = module.get_delta_weight("default").detach()
    # Among seven orthonormal vectors one always has a cosine of at least 0.38: the threshold has to be high.
    ours, count = repaired(weight, delta, evolve(SPEC, threshold=0.9))
    assert count > 0
    intruders.reduce_intruder_dimension(model, threshold_epsilon=0.9, logging_sink=None)
    theirs = module.get_delta_weight("intruder_reduced").detach()
    # Two SVDs of 7 × 9 numbers of order 1 in fp32
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_in_a_run():
    """A phase ends with the repaired delta, and its notes count the intruders; two such methods are refused."""
    adapter = {"type": "lora", "rank": 3, "alpha": 8, "targets": ["layer1"]}
    table = {
        "adapter": adapter,
        "optimizer": {"type": "adamw", "lr": 4e-2},
        "train": {"steps": 6},
        "retention": {"intruder-repair": {"threshold": 0.95, "scale": 0.5}},
    }
    bundle = mgk.load_base("reference", device="cpu")
    name = next(
        n
        for n, _ in bundle.model.named_parameters()
        if n.startswith("layer1") and n.endswith("weight")
    )
    before = bundle.model.get_parameter(name).detach().clone()
    data = mgk.load_data(bundle, "teacher", seed=1, size=64, items=24)
    result = mgk.run_phase(bundle, data, table)
    trained = 8 / 3 * result.adapter[f"{name}/b"] @ result.adapter[f"{name}/a"]
    spec = IntruderSpec(type="intruder-repair", threshold=0.95, scale=0.5)
    expected, count = repaired(before, trained, spec)
    assert count > 0
    found = bundle.model.get_parameter(name).detach() - before
    assert torch.allclose(found, expected, atol=1e-5)
    assert result.entry.transforms[0].startswith("intruder-repair(scale=0.5")
    both = table | {"retention": {"intruder-repair": {}, "opcm": {}}}
    with pytest.raises(InputError, match="use one of the two"):
        mgk.run_phase(bundle, data, both)
