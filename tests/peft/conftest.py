"""Models and cases for PEFT's tuners: not square, alpha ≠ r, trained a few steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import mgk

CASES: dict[str, dict[str, Any]] = {
    "LORA": {"r": 3, "lora_alpha": 5},
    "OFT": {"r": 0, "oft_block_size": 4},
    "IA3": {},
    "BOFT": {"boft_block_size": 4, "boft_n_butterfly_factor": 1},
    "LOHA": {"r": 3, "alpha": 5},
    "LOKR": {"r": 3, "alpha": 5},
    "VERA": {"r": 5, "save_projection": False},
    "HRA": {"r": 4},
    "SHIRA": {"r": 2},
    "GLORA": {"r": 3},
    "ROAD": {"group_size": 4},
    "VBLORA": {"r": 3, "num_vectors": 32, "vector_length": 4, "topk": 2},
    "FOURIERFT": {"n_frequency": 20, "scaling": 5.0},
    "RANDLORA": {"r": 3, "randlora_alpha": 5},
}


class Mlp(nn.Module):
    """Two linear maps that are not square, a bias on one of them only, and an output map that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up, self.down, self.out = (
            nn.Linear(12, 20),
            nn.Linear(20, 8, bias=False),
            nn.Linear(8, 5),
        )
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
            parameter.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.down(torch.tanh(self.up(x)))))


@pytest.fixture(params=CASES)
def kind(request: pytest.FixtureRequest) -> str:
    """Return one tuner's name after the other."""
    return str(request.param)


@pytest.fixture
def mlp() -> type[Mlp]:
    """Return the class of the small model; each instance has the same weights."""
    return Mlp


@pytest.fixture
def put_on():
    """Return a maker of adapters on `Mlp`-like models, with a case's options unless told otherwise."""

    def make(model: nn.Module, kind: str, **keys: Any):
        keys = {"targets": ("up", "down"), "options": CASES.get(kind, {}), **keys}
        return mgk.attach(model, f"peft:{kind}", **keys)

    return make


@pytest.fixture
def train():
    """Return a function that takes a few steps of Adam on an adapter, the model in training mode."""

    def run(
        model: nn.Module,
        adapter: Any,
        inputs: torch.Tensor,
        *,
        steps: int = 5,
        lr: float = 0.02,
    ) -> None:
        optimizer = torch.optim.Adam(adapter.parameters(), lr=lr)
        was = model.training
        model.train()
        for step in range(steps):
            output = model(inputs)
            output = output if isinstance(output, torch.Tensor) else output.logits
            target = torch.randn(
                output.shape, generator=torch.Generator().manual_seed(step)
            )
            optimizer.zero_grad()
            (output - target).square().mean().backward()
            optimizer.step()
        model.train(was)

    return run


@pytest.fixture
def by_peft():
    """Return a function that wraps a copy of a bare model by PEFT itself and puts an adapter's tensors in by name."""
    return _by_peft


def _by_peft(model: nn.Module, adapter: Any) -> nn.Module:
    """Return a copy of the bare ``model`` wrapped by PEFT itself, with the adapter's tensors put in by name."""
    import peft

    config = copy.deepcopy(adapter.config)
    other = peft.get_peft_model(copy.deepcopy(model), config)
    own = dict(other.named_parameters()) | dict(other.named_buffers())
    with torch.no_grad():
        for key, value in adapter.state_dict().items():
            module, _, name = key.partition("/")
            tensor = own.get(f"base_model.model.{module}.{name}")
            if tensor is None:  # kept in a dictionary
                tensor = getattr(
                    other.get_submodule(f"base_model.model.{module}"),
                    name.split(".")[0],
                )["default"]
            tensor.copy_(value)
    return other.train(model.training)
