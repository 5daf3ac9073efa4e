"""Every key of the optimizers and of the step changes what is trained, or how."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from mgk_core.contract.errors import ConfigError, InputError
from mgk_sgd.optimizers import MAKERS, make_optimizer
from mgk_sgd.specs import OptimizerSpec, SgdSpec, StandardStepSpec
from mgk_sgd.step import StandardStep

CHANGES: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("sgd", "lr"): ({}, 2e-3),
    ("sgd", "weight_decay"): ({}, 0.1),
    ("sgd", "clip"): ({}, 0.1),
    ("sgd", "schedule"): ({}, "cosine"),
    ("sgd", "warmup_steps"): ({}, 3),
    ("sgd", "min_lr_ratio"): ({"schedule": "linear"}, 0.5),
    ("sgd", "momentum"): ({}, 0.9),
    ("sgd", "nesterov"): ({"momentum": 0.9}, True),
    ("adamw", "betas"): ({}, [0.5, 0.9]),
    ("adamw", "eps"): ({}, 1e-2),
    ("adamw", "weight_decay"): ({}, 0.1),
    ("sgd", "lr_ratio"): ({}, 16.0),
    ("sgd", "groups"): ({}, {"lora_B": {"lr": 0.01}}),
    ("sgd", "warmup_ratio"): ({}, 0.5),
    ("sgd", "decay_ratio"): ({"schedule": "warmup_stable_decay"}, 1.0),
    ("sgd", "cycles"): ({"schedule": "cosine_with_restarts"}, 2),
    ("sgd", "power"): ({"schedule": "polynomial"}, 2.0),
    ("adamw-8bit", "min_8bit_size"): ({}, 16),
    ("adafactor", "beta2_decay"): ({}, -0.5),
    ("adafactor", "eps2"): ({}, 0.1),
    ("adafactor", "d"): ({}, 4.0),
    ("muon", "momentum"): ({}, 0.5),
    ("muon", "nesterov"): ({}, False),
    ("muon", "ns_steps"): ({}, 2),
    ("muon", "adjust"): ({}, "original"),
}
"""(type, key) → (other keys, the key's new value)."""


def trained(make_phase: Any, batches: Any, table: dict[str, Any]) -> list[torch.Tensor]:
    """Train six steps; return the parameters."""
    ctx = make_phase({"optimizer": table}, steps=6)
    step = StandardStep(ctx)
    for i, batch in enumerate(batches(ctx, 6)):
        step([batch], i)
    return [p.detach() for p in ctx.phase.adapter.parameters()]


@pytest.mark.parametrize(("type_", "key"), CHANGES, ids=str)
def test_a_key_changes_what_is_trained(
    make_phase: Any, batches: Any, type_: str, key: str
) -> None:
    """Six steps with the key and without it end in different parameters."""
    others, value = CHANGES[type_, key]
    without = trained(make_phase, batches, {"type": type_, **others})
    with_key = trained(make_phase, batches, {"type": type_, **others, key: value})
    assert any(not torch.equal(a, b) for a, b in zip(without, with_key, strict=True))


def test_no_key_is_left_out() -> None:
    """The table above names every key there is; the step's is tested with the step."""
    known = {f.name for cls in MAKERS for f in attrs.fields(cls)} - {"type"}
    assert known == {key for _, key in CHANGES}
    assert {f.name for f in attrs.fields(StandardStepSpec)} == {"type", "gradients"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": "sgd", "lr": 0.0}, "lr"),
        ({"type": "sgd", "nesterov": True}, "momentum > 0"),
        ({"type": "sgd", "schedule": "cosin"}, "did you mean 'cosine'"),
        ({"type": "adamw", "betas": [0.9, 1.0]}, "betas"),
        ({"type": "adamw", "momentum": 0.9}, "unknown key"),
        ({"type": "adamw", "decay_ratio": 0.1}, "decay_ratio.*warmup_stable_decay"),
        ({"type": "adamw", "warmup_steps": 2, "warmup_ratio": 0.1}, "warmup_ratio"),
        ({"type": "adamw-schedule-free", "schedule": "cosine"}, "constant"),
        ({"type": "adamw-schedule-free", "betas": [0.0, 0.9]}, "betas"),
        ({"type": "adamw", "groups": {"b": {"lrr": 1.0}}}, "did you mean 'lr'"),
        (
            {"type": "adamw", "groups": {"b": {"lr": -1.0}}},
            "b.*lr or weight_decay, each a number >= 0",
        ),
        ({"type": "adamw", "groups": {"b": {}}}, "lr or weight_decay"),
    ],
    ids=str,
)
def test_wrong_values_are_refused_when_they_are_read(
    make_phase: Any, table: dict[str, Any], message: str
) -> None:
    """The message names the key and what was expected."""
    with pytest.raises(ConfigError, match=message):
        make_phase({"optimizer": table})


def test_an_adapter_without_trainable_parameters_is_refused(make_phase: Any) -> None:
    """There would be nothing to train."""
    adapter = make_phase().phase.adapter
    for p in adapter.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match="nothing can be trained"):
        make_optimizer(adapter, SgdSpec(type="sgd"))


def test_frozen_parameters_are_left_out(make_phase: Any, batches: Any) -> None:
    """Where a plugin froze A, only B is optimised, by hand-derived gradients too."""
    ctx = make_phase()
    for p in ctx.phase.adapter.parameters()[::2]:
        p.requires_grad_(False)
    ctx.phase.optimizer = make_optimizer(ctx.phase.adapter, ctx.phase.phase.optimizer)
    before = [p.detach().clone() for p in ctx.phase.adapter.parameters()]
    StandardStep(ctx)(batches(ctx, 1), 0)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before, ctx.phase.adapter.parameters(), strict=True)
    ]
    assert moved == [False, True, False, True]


def test_a_class_of_another_plugin_is_refused() -> None:
    """The plugin makes its own optimizers, whatever type a specification names."""
    with pytest.raises(InputError, match="OptimizerSpec is none of SgdSpec"):
        make_optimizer(_Adapter(), OptimizerSpec(type="lion"))


class _Adapter:
    name = "x"

    def parameters(self) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.zeros(1))]
