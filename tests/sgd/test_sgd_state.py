"""Optimizer state as flat tensors: exact through a file, and honest about what it cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgk_core.contract.errors import InputError
from mgk_sgd.state import flatten, restore
from mgk_sgd.step import StandardStep

OPTIMIZERS: dict[str, Any] = {
    "sgd": None,
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}


SHIPPED = ("adamw-8bit", "adamw-schedule-free", "adafactor", "muon")
"""Types whose state is more than momenta: bytes with their maps, modes, rows and columns, two parts."""


@pytest.mark.parametrize("name", [*OPTIMIZERS, *SHIPPED])
def test_a_resumed_phase_ends_in_the_same_bits(
    make_phase: Any, batches: Any, tmp_path: Path, name: str
) -> None:
    """Through safetensors, half a phase and the other half are the whole phase."""
    table = {"optimizer": {"type": name, "lr_ratio": 4.0}} if name in SHIPPED else None
    if name == "adamw-8bit":
        table["optimizer"]["min_8bit_size"] = 64
    whole, first, second = (
        make_phase(table, optimizer=OPTIMIZERS.get(name)) for _ in range(3)
    )
    data = batches(whole, 10)
    for ctx, part in ((whole, data), (first, data[:5])):
        step = StandardStep(ctx)
        for i, batch in enumerate(part):
            step([batch], i)
    save_file(step.state_dict(), tmp_path / "optimizer.safetensors")
    second.phase.adapter.load_state_dict(first.phase.adapter.state_dict())
    step = StandardStep(second)
    step.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    for i, batch in enumerate(data[5:], start=5):
        step([batch], i)
    pairs = zip(
        whole.phase.adapter.parameters(), second.phase.adapter.parameters(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


class Odd(torch.optim.Optimizer):
    """Keeps numbers, nested containers and a group's own counter."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "k": 0, "warm": False})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["warm"] = True
            for p in group["params"]:
                self.state[p] = {
                    "count": 3, "rate": 0.1, "on": True, "none": None, "blocks": [torch.ones(2), {"q": torch.arange(3)}]
                }  # fmt: skip


def test_numbers_lists_and_dicts_come_back_as_what_they_were() -> None:
    """Types and values survive exactly, in the state and in the parameter group."""
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(3)),
    ]
    one, two = Odd(parameters), Odd(parameters)
    one.step()
    restore(two, flatten(one))
    state = two.state[parameters[1]]
    assert (state["count"], state["rate"], state["on"]) == (3, 0.1, True)
    assert [type(state[k]) for k in ("count", "rate", "on")] == [int, float, bool]
    assert torch.equal(state["blocks"][0], torch.ones(2))
    assert torch.equal(state["blocks"][1]["q"], torch.arange(3))
    assert (two.param_groups[0]["k"], two.param_groups[0]["warm"]) == (1, True)


def test_the_flat_state_is_a_copy() -> None:
    """Training on does not change a state that was taken before."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.5)
    parameter.grad = torch.ones(2)
    optimizer.step()
    flat = flatten(optimizer)
    kept = {k: v.clone() for k, v in flat.items()}
    optimizer.step()
    assert all(torch.equal(flat[k], kept[k]) for k in flat)
    assert "state/0/tensor/momentum_buffer" in flat


def test_another_adapters_state_is_refused() -> None:
    """A state of more parameters than there are is an error that says so."""
    small = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match="another adapter"):
        restore(small, {"state/4/tensor/momentum_buffer": torch.zeros(1)})
    with pytest.raises(InputError, match="expected state/"):
        restore(small, {"momentum": torch.zeros(1)})


def test_state_that_no_tensor_can_hold_is_refused() -> None:
    """Nothing is left out silently."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.state[parameter]["name"] = "x"
    with pytest.raises(InputError, match="a str in its state"):
        flatten(optimizer)
