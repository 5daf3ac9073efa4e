"""Which layer first produced something that is not finite: by replaying one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import trainable
from mgk_core.contract.bundle import Batch
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm


@runtime_checkable
class Owned(Protocol):
    """Something that knows which plugin it is from."""

    @property
    def owner(self) -> str:
        """Name plugin and distribution."""


BAD = "first"  # is in every sentence that names a place

_Seen = list[tuple[str, bool, Any]]
"""(module's name, whether its inputs were finite, its output), in the order in which they ended."""


def first_bad_layer(ctx: PhaseContext, batch: Batch) -> str:
    """Return a sentence that names the first module with a non-finite output, or gradient, on ``batch``."""
    with _watched(ctx.model) as seen, torch.enable_grad():
        total, _ = ctx.loss(batch)
    for name, sound, output in seen:
        if not _finite(output):
            why = (
                ""
                if sound
                else ", whose input is not finite either: look at the data of that step"
            )
            return (
                f"on replay the first layer with a non-finite output is {name!r}{why}"
            )
    if not bool(torch.isfinite(total)):
        return "on replay every layer is finite, and the loss is the first that is not"
    return _first_bad_gradient(ctx.model, total, seen)


def bad_term(terms: Mapping[str, LossTerm], step: int) -> str | None:
    """Return a sentence that names the first loss term that is not finite at a step; None: none is."""
    for name, term in terms.items():
        if not _finite(term(step).detach()):
            whose = f" of {term.owner}" if isinstance(term, Owned) else ""
            return f"the loss term {name!r}{whose} is not finite"
    return None


def _first_bad_gradient(model: nn.Module, total: Tensor, seen: _Seen) -> str:
    """Go back from the loss; the last layer whose output's gradient is not finite is where it began."""
    named = [
        (n, o)
        for n, _, o in seen
        if isinstance(o, Tensor) and o.requires_grad and o is not total
    ]
    parameters = trainable(model)
    wanted = [o for _, o in named] + [p for _, p in parameters]
    if not total.requires_grad or not wanted:
        return (
            "on replay the forward pass is finite, and nothing in it needs a gradient"
        )
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    outputs, weights = found[: len(named)], found[len(named) :]
    for (name, _), gradient in reversed(list(zip(named, outputs, strict=True))):
        if gradient is not None and not _finite(gradient):
            return f"on replay the forward pass is finite; the gradient first is not at the output of {name!r}"
    for (name, _), gradient in zip(parameters, weights, strict=True):
        if gradient is not None and not _finite(gradient):
            return f"on replay the forward pass is finite; the first gradient that is not is that of {name!r}"
    return "on replay loss and gradient are finite, so a loss term was not, or chance (dropout) played a part"


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Seen]:
    """Record every module's output. Inner modules end before outer ones, so the first bad one is innermost."""
    seen: _Seen = []

    def recorder(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            seen.append((name, _finite(args), output))

        return hook

    handles = [
        m.register_forward_hook(recorder(n or type(m).__name__))
        for n, m in model.named_modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, (tuple, list)):
        return all(_finite(o) for o in output)
    return True
