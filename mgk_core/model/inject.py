"""Putting an adapter's part on a module without wrapping it.

The module stays where it is, with its parameters and their names; only its class becomes a
subclass whose forward passes the output through the parts in their slot. So state-dict keys,
ties, ``isinstance`` checks and code that reads ``module.weight`` keep working, and taking the
last part off restores the class itself.
"""
# ruff: noqa: SLF001 - a module's own dictionaries are what this file is about

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mgk_core.contract.adapter import SLOT, Factors
from mgk_core.contract.errors import InputError
from mgk_core.model.lowrank import dense_delta


class Part(nn.Module):
    """What an adapter adds to one module. Subclasses write `weights` or `factors`.

    `weights` is the formula: what the module's parameters become. It is also the forward pass: the
    parameters are replaced for the call (``on_weights`` True). A part that overrides `adjust`,
    which sees the module's input and output, runs that instead, because it is faster; the
    conformance tests compare the two. A part whose delta is a low-rank product may write only
    `factors`.
    """

    enabled: bool = True
    on_weights: bool = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "on_weights" not in cls.__dict__:
            cls.on_weights = cls.adjust is Part.adjust

    def factors(self) -> Factors | None:
        """Return the factors of an additive delta, with their gradients; None: it is not one."""
        return None

    def adjust(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output of ``module(*args)`` with this part's contribution."""
        return output

    def weights(
        self, module: nn.Module, current: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return replacements for some of the module's parameters, by attribute name.

        Pure and differentiable, in the dtype of what it replaces. The default adds the delta of
        `factors` to ``weight``.

        :param current: the module's parameters as earlier adapters leave them
        """
        factors = self.factors()
        if factors is None:
            return {}
        weight = current["weight"]
        return {"weight": (weight + dense_delta(factors, weight)).to(weight.dtype)}


class _Adapted:
    """Mixin of every adapted class: parts in order of attaching."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = [p for p in self._modules[SLOT]._modules.values() if p.enabled]  # type: ignore[attr-defined]
        plain = super().forward  # type: ignore[misc]
        replacing = [p for p in parts if p.on_weights]
        if replacing:
            changed = effective_weights(self, replacing)  # type: ignore[arg-type]
            output = _with_weights(self, plain, changed, args, kwargs)  # type: ignore[arg-type]
        else:
            output = plain(*args, **kwargs)
        inputs = args or tuple(kwargs.values())
        for part in parts:
            if not part.on_weights:
                output = part.adjust(self, inputs, output)
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Rebuild through the base's class, since the adapted one is made at run time."""
        return _rebuild, (type(self).__bases__[1],), self.__dict__


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    adapted = adapted_class(cls)
    return adapted.__new__(adapted)


def parts_of(module: nn.Module) -> list[Part]:
    """Return the parts on a module in the order in which they were put there."""
    return list(module._modules[SLOT]._modules.values()) if is_adapted(module) else []  # type: ignore[arg-type, union-attr]


def effective_weights(module: nn.Module, parts: Iterable[Part]) -> dict[str, Tensor]:
    """Return what ``parts``, one after the other, make of the module's parameters (only the changed ones)."""
    own = {n: p for n, p in module.named_parameters() if SLOT not in n.split(".")}
    changed: dict[str, Tensor] = {}
    for part in parts:
        changed.update(part.weights(module, {**own, **changed}))
    return changed


def _with_weights(
    module: nn.Module,
    forward: Callable[..., Any],
    changed: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call ``forward`` with some parameters shadowed by plain tensors.

    An instance attribute hides the registered parameter of the same name, which itself stays in
    its place: names, order and identity of the parameters never change.
    """
    hidden: list[tuple[nn.Module, str]] = []
    try:
        for name, value in changed.items():
            path, _, attribute = name.rpartition(".")
            owner = module.get_submodule(path)
            hidden.append((owner, attribute))
            owner.__dict__[attribute] = value
        return forward(*args, **kwargs)
    finally:
        for owner, attribute in hidden:
            owner.__dict__.pop(attribute, None)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def adapted_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``cls`` that runs the parts in its slot; one per class."""
    if cls not in _CLASSES:
        _CLASSES[cls] = type(
            f"Adapted{cls.__name__}", (_Adapted, cls), {"__module__": cls.__module__}
        )
    return _CLASSES[cls]


def is_adapted(module: nn.Module) -> bool:
    """Whether any part is on this module."""
    return isinstance(module, _Adapted)


def _no_shortcut(module: nn.Module, args: Any, output: Any) -> None:
    """Do nothing; being registered is the point (see `put`)."""


def _key(name: str) -> str:
    """Return the slot's key of an adapter: no dot, and never the name of a module's own attribute."""
    return "@" + name.replace(".", "%2E")


def has_part(module: nn.Module, name: str) -> bool:
    """Whether the part of an adapter is on this module itself."""
    return is_adapted(module) and _key(name) in module.get_submodule(SLOT)._modules


def put(module: nn.Module, name: str, part: Part) -> None:
    """Put ``part`` on ``module`` under the adapter's name; `InputError` where it is taken.

    The hook on the part is never called. ``nn.TransformerEncoderLayer`` reads its children's
    weights directly, past their forward methods, unless some module inside it has a hook.
    """
    if not is_adapted(module):
        module.add_module(SLOT, nn.Module())
        module.__class__ = adapted_class(type(module))
    slot = module.get_submodule(SLOT)
    if _key(name) in slot._modules:
        raise InputError(
            f"an adapter named {name!r} is attached already; give the new one another name"
        )
    if not part._forward_hooks:
        part.register_forward_hook(_no_shortcut)
    slot.add_module(_key(name), part)


def take(module: nn.Module, name: str) -> None:
    """Take a part off; with the last one the module is of its own class again."""
    if not is_adapted(module):
        return
    slot = module.get_submodule(SLOT)
    slot._modules.pop(_key(name), None)
    if not slot._modules:
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


__all__ = [
    "Part",
    "adapted_class",
    "effective_weights",
    "has_part",
    "is_adapted",
    "parts_of",
    "put",
    "switched_off",
    "take",
]
