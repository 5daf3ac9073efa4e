"""Attaching LoRA without the rest of mgk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgk_core.contract.adapter import state_of
from mgk_lora.attach import attach
from mgk_lora.spec import DoraSpec, LoraSpec


@pytest.fixture
def put_on():
    """Return a maker of adapters: model, then the keys of the type; everything is adapted unless said otherwise."""

    def make(
        model: torch.nn.Module,
        name: str = "adapter",
        *,
        type: str = "lora",
        seed: int = 0,
        **options: Any,
    ):
        cls = DoraSpec if type == "dora" else LoraSpec
        spec = cls(type=type, **{"rank": 3, "alpha": 5.0, "targets": ("*",), **options})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = attach(model, spec, name)
        state_of(model).adapters.append(adapter)
        return adapter

    return make
