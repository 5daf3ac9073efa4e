"""Code that somebody has put into a model beside its weights: hooks, replaced forwards, other classes.

A state dict does not contain it, so a model that was scored with it is not the one that is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from mgk_core.contract.adapter import SLOT
from mgk_core.model.inject import has_part

Owner = Callable[[object], str | None]
"""Returns whose a function or class is; None: it is not of interest."""


def foreign_code(model: nn.Module, owner: Owner) -> dict[str, str]:
    """Return place → owner, of everything that computes in ``model`` and has one.

    Adapters' parts are left out: they come off with their adapter.
    """
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if SLOT in path.split("."):
            continue
        for what, code in _code(module):
            name = owner(code)
            if name is not None:
                found[f"{what} of {path or 'the model'!r}"] = name
    return found


def left_parts(model: nn.Module, adapter: str) -> list[str]:
    """Return the modules that a part of an adapter is on."""
    return [
        path
        for path, module in model.named_modules()
        if SLOT not in path.split(".") and has_part(module, adapter)
    ]


def _code(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield (what it is, the function or class) for all that a call of one module runs."""
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):  # noqa: SLF001 - no public list
        yield (
            f"a forward hook ({getattr(hook, '__qualname__', type(hook).__name__)})",
            hook,
        )
    if "forward" in module.__dict__:
        yield "the replaced forward", module.__dict__["forward"]
    yield f"the class {type(module).__name__}", type(module)


__all__ = ["foreign_code", "left_parts"]
