"""Merging without the runner: an adapted model, and the rule ``exact``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mgk_core.contract.adapter import state_of
from mgk_core.contract.outcome import Proposal
from mgk_lora.attach import attach
from mgk_lora.spec import DoraSpec, LoraSpec
from mgk_merge.exact import merge
from mgk_merge.spec import MergeSpec


@pytest.fixture
def put_on():
    """Return a maker of adapters: model, then the keys of the type."""

    def make(
        model: torch.nn.Module,
        name: str = "adapter",
        *,
        type: str = "lora",
        seed: int = 0,
        **options: Any,
    ):
        cls = DoraSpec if type == "dora" else LoraSpec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = attach(
                model,
                cls(
                    type=type, **{"rank": 3, "alpha": 5.0, "targets": ("*",), **options}
                ),
                name,
            )
        state_of(model).adapters.append(adapter)
        return adapter

    return make


@pytest.fixture
def take_off():
    """Detach an adapter as the runner does."""

    def off(model: torch.nn.Module, adapter: Any) -> None:
        adapter.detach()
        state_of(model).adapters.remove(adapter)

    return off


@pytest.fixture
def fold(tmp_path):
    """Merge by the rule ``exact``; keywords go to the rule or, where they are its own, to the proposal."""

    def run(
        model: torch.nn.Module,
        adapter: Any,
        *,
        scale: float = 1.0,
        transforms: Any = (),
        undo: str = "memory",
        **rule: Any,
    ):
        spool = str(tmp_path / "spool") if undo == "disk" else None
        proposal = Proposal(scale=scale, transforms=transforms, undo=undo, spool=spool)
        return merge(model, adapter, proposal, MergeSpec(type="exact", **rule))

    return run
