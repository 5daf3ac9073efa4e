"""Counting what a forward pass keeps for its backward pass, also where it has hooks of its own.

Of nested ``saved_tensors_hooks`` only the innermost are called. So code with hooks of its own shows
what it keeps to `watcher` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

watcher: ContextVar[Callable[[Tensor], object]] = ContextVar(
    "mgk_saved_watcher", default=lambda _: None
)
"""Is called with every tensor that is kept, in the form in which it is kept."""


@contextmanager
def counted(but: set[int]) -> Iterator[dict[int, int]]:
    """Yield storage → bytes of all that is kept in the block. but: addresses of storages that do not count."""
    kept: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in but:
            kept[storage.data_ptr()] = max(
                kept.get(storage.data_ptr(), 0), storage.nbytes()
            )
        return tensor

    token = watcher.set(look)
    try:
        with saved_tensors_hooks(look, lambda tensor: tensor):
            yield kept
    finally:
        watcher.reset(token)


__all__ = ["watcher"]
