"""Attaching an adapter for a while, and taking it off again in full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mgk_core.contract.adapter import Adapter, state_of
from mgk_core.contract.specs import Spec
from mgk_core.host.hooks import Hooks
from mgk_core.run.foreign_code import left_parts


def attach_seeded(
    hooks: Hooks, model: nn.Module, spec: Spec, name: str, seed: int = 0
) -> Adapter:
    """Attach an adapter and register it; torch's random numbers are left as they were.

    :param seed: of the adapter's random initialisation
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        adapter = hooks.attach_adapter(model, spec, name)
    state_of(model).adapters.append(adapter)
    return adapter


def take_off(hooks: Hooks, model: nn.Module, adapter: Adapter) -> None:
    """Detach an adapter and forget it, unless that was done before.

    :raises PluginError: the adapter is still on the model
    """
    adapters = state_of(model).adapters
    if any(a is adapter for a in adapters):
        adapter.detach()
        adapters[:] = [a for a in adapters if a is not adapter]
        if left := left_parts(model, adapter.name):
            plugin = hooks.plugins.plugin_of(type(adapter)) or type(adapter).__module__
            text = f"detach() of adapter {adapter.name!r} left its part on {left[0]!r}"
            raise hooks.plugins.fault([plugin], "mgk_attach_adapter", text)


@contextmanager
def attached(
    hooks: Hooks, model: nn.Module, spec: Spec, name: str, *, seed: int = 0
) -> Iterator[Adapter]:
    """Attach an adapter for the length of the block; the base is frozen."""
    model.requires_grad_(False)
    adapter = attach_seeded(hooks, model, spec, name, seed)
    try:
        yield adapter
    finally:
        take_off(hooks, model, adapter)
