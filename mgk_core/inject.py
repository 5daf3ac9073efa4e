"""Putting an adapter's part on a module without wrapping it.

The module stays where it is, with its parameters and their names; only its class becomes a
subclass whose forward passes the output through the parts in their slot. So state-dict keys,
ties, ``isinstance`` checks and code that reads ``module.weight`` go on working, and taking the
last part off restores the class itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.adapter import SLOT
from mgk_core.errors import InputError


class Part(nn.Module):
    """What an adapter adds to one module. Subclasses override one of the two methods.

    `adjust` is the fast way: it sees the module's input and output. `weights` is the general
    way, for modules that use their weight functionally: it replaces parameters for the call.
    """

    enabled: bool = True
    on_weights: bool = False

    def adjust(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output of ``module(*args)`` with this part's contribution."""
        return output

    def weights(self, module: nn.Module, current: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return replacements for some of the module's parameters, by attribute name."""
        return {}


class _Adapted:
    """Mixin of every adapted class: parts in order of attaching."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        slot = self._modules[SLOT]  # type: ignore[attr-defined]
        parts = [p for p in slot.values() if p.enabled]
        plain = super().forward  # type: ignore[misc]
        changed: dict[str, Tensor] = {}
        for part in parts:
            if part.on_weights:
                current = {**dict(self.named_parameters(recurse=True)), **changed}  # type: ignore[attr-defined]
                changed.update(part.weights(self, current))
        if changed:
            output = _with_weights(self, plain, changed, args, kwargs)  # type: ignore[arg-type]
        else:
            output = plain(*args, **kwargs)
        for part in parts:
            if not part.on_weights:
                output = part.adjust(self, args, output)
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Rebuild through the base's class, since the adapted one is made at run time."""
        return _rebuild, (type(self).__bases__[1],), self.__dict__


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    adapted = adapted_class(cls)
    return adapted.__new__(adapted)


def _with_weights(
    module: nn.Module,
    forward: Callable[..., Any],
    changed: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call ``forward`` with some parameters replaced by plain tensors, then put them back."""
    kept: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    try:
        for name, value in changed.items():
            path, _, attribute = name.rpartition(".")
            owner = module.get_submodule(path)
            kept.append((owner, attribute, owner._parameters[attribute]))
            del owner._parameters[attribute]
            owner.__dict__[attribute] = value
        return forward(*args, **kwargs)
    finally:
        for owner, attribute, parameter in reversed(kept):
            owner.__dict__.pop(attribute, None)
            owner._parameters[attribute] = parameter


@cache
def adapted_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``cls`` that runs the parts in its slot."""
    return type(f"Adapted{cls.__name__}", (_Adapted, cls), {"__module__": cls.__module__})


def is_adapted(module: nn.Module) -> bool:
    """Tell whether any part sits on this module."""
    return isinstance(module, _Adapted)


def put(module: nn.Module, name: str, part: Part) -> None:
    """Put ``part`` on ``module`` under the adapter's name; `InputError` where it is taken."""
    if not is_adapted(module):
        module.add_module(SLOT, nn.ModuleDict())
        module.__class__ = adapted_class(type(module))
    slot = module.get_submodule(SLOT)
    assert isinstance(slot, nn.ModuleDict)  # noqa: S101 - made above
    if name in slot:
        raise InputError(f"an adapter named {name!r} is attached already; give the new one another name")
    slot[name] = part


def take(module: nn.Module, name: str) -> None:
    """Take a part off; with the last one the module is of its own class again."""
    if not is_adapted(module):
        return
    slot = module.get_submodule(SLOT)
    assert isinstance(slot, nn.ModuleDict)  # noqa: S101 - made by put
    if name in slot:
        del slot[name]
    if len(slot) == 0:
        del module._modules[SLOT]
        module.__class__ = type(module).__bases__[1]


@contextmanager
def switched_off(parts: list[Part]) -> Iterator[None]:
    """Disable parts inside the block and restore what each was. Nests."""
    before = [part.enabled for part in parts]
    try:
        for part in parts:
            part.enabled = False
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.enabled = was


def move_like(part: nn.Module, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Bring a new part to the weight's device; adapters stay fp32 unless told otherwise."""
    part.to(device=weight.device, dtype=dtype)
