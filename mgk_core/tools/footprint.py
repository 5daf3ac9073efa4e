"""What a phase holds in memory at once: the base, the adapter, and the largest of what comes one after the other.

Training, merge, verification, evaluation and statistics each hold something of their own. How much is
seen on one batch, or one group of items, that is put through the model; nothing is trained.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgk_core.contract.adapter import Adapter, base_state_dict, trainable
from mgk_core.contract.bundle import (
    Batch,
    Choice,
    ComputesTogether,
    PhaseData,
    Tokens,
)
from mgk_core.contract.context import PhaseContext
from mgk_core.model.activation_meter import counted
from mgk_core.model.statistics import visit_layers
from mgk_core.run.scores import chosen_probes
from mgk_core.run.session import Session
from mgk_core.run.verify_merge import outputs_on

FP32 = 4
TRIED = 16
"""Probe items scored to measure memory, if a bundle does not define which ones it batches together."""


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside the block and not yet gone. peak: the most of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation; what it is given was there before, what it returns may be new."""
        self._see((args, kwargs), made=False)
        found = func(*args, **(kwargs or {}))
        self._see(found, made=True)
        return found

    def _see(self, values: Any, *, made: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes() if made else 0
            if key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._gone, key, size))
                self.now += size
                self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int, _: object) -> None:
        self._known.pop(key, None)
        self.now -= size


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors that ``work`` makes and holds at once."""
    with Allocated() as allocated:
        work()
    return int(allocated.peak)


def memory_of(
    session: Session,
    index: int,
    adapter: Adapter,
    *,
    optimizer: int,
    micro: int,
    evaluation: int,
    collects: bool,
    exchange: int = 0,
) -> dict[str, int]:
    """Return part → bytes of what one phase holds at its largest.

    optimizer: bytes of its state. evaluation: as `scoring` gives it. collects: whether a method keeps statistics.
    exchange: bytes in which gradients of several processes are summed, after their activations are gone.
    """
    data, ctx = session.data[index], session.context(index)
    ctx.adapter = adapter
    parameters = size_of(adapter.parameters())
    targets = [t.parameter for t in adapter.targets().values()]
    undo = size_of(targets) if session.config.run.undo == "memory" else 0
    outputs, verification = _verifying(session, data)
    parts = [
        {
            "gradients": parameters,
            "optimizer": optimizer,
            "activations": activations(session, ctx, micro),
        },
        {"gradients": parameters, "optimizer": optimizer, "exchange": exchange},
        # fp32 copies of the largest weight: the sum and the delta
        {
            "old weights": undo,
            "unmerged outputs": outputs,
            "merge": 2 * FP32 * max((t.numel() for t in targets), default=0),
        },
        {
            "old weights": undo,
            "unmerged outputs": outputs,
            "verification": verification,
        },
        {"old weights": undo, "unmerged outputs": outputs, "evaluation": evaluation},
        {"statistics": _collecting(session, index, micro) if collects else 0},
    ]
    base = size_of(base_state_dict(session.bundle.model).values())
    residual = residual_bytes(targets) if index else 0
    return {"base": base, "adapter": parameters, "residual": residual} | max(
        parts, key=lambda part: sum(part.values())
    )


def activations(session: Session, ctx: PhaseContext, micro: int) -> int:
    """Run one micro-batch forward and backward; return the most bytes that this holds at once."""
    model = session.bundle.model
    ctx.objective = session.hooks.make_objective(ctx)
    own = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    was_training = model.training
    model.train()
    try:
        with counted(own) as kept, Allocated() as allocated:
            total, _ = ctx.loss(ctx.batch(list(range(micro))))
            wanted = [p for _, p in trainable(model)]
            found = (
                torch.autograd.grad(total, wanted, allow_unused=True) if wanted else ()
            )
    finally:
        model.train(was_training)
    del total, found
    return max(sum(kept.values()), int(allocated.peak))


def scoring(session: Session) -> int:
    """Score a few items of every probe that each row has; return the most bytes that this takes.

    Of a bundle that computes many items together these are the items that take most room. Answers that a
    model writes itself go token by token, and take less.
    """
    ctx, most = session.context(0), 0
    for probe in chosen_probes(ctx):
        if probe.when == "always":
            few = evolve(probe, items=_together(session.bundle, probe.items))
            with torch.no_grad():
                most = max(most, peak_of(partial(session.hooks.evaluate, ctx, few)))
    return most


def _together(bundle: object, items: Sequence[Any]) -> Sequence[Any]:
    known = isinstance(items[0], (Choice, Tokens))
    if known and isinstance(bundle, ComputesTogether):
        return bundle.together(items)
    return items[:TRIED]


def _verifying(session: Session, data: PhaseData) -> tuple[int, int]:
    """Return bytes of the outputs that are verified on, and of what comparing takes: merged ones, and those of a draw."""
    found: list[Tensor] = []
    most = peak_of(lambda: found.extend(outputs_on(session.bundle, data.verify)))
    return size_of(found), size_of(found) + most


def _collecting(session: Session, index: int, micro: int) -> int:
    """Return what showing plugins each layer's inputs and gradients takes, of training data or the base's own."""
    last = index == len(session.data) - 1
    batches = [] if last else [_micro_batch(session.data[index], micro)]
    if index == 0:
        batches += [b for d in session.data for b in d.calibration][:1]
    return max((_showing(session, batch) for batch in batches), default=0)


def _showing(session: Session, batch: Batch) -> int:
    return peak_of(
        lambda: visit_layers(session.bundle, session.targets, [batch], lambda *_: None)
    )


def _micro_batch(data: PhaseData, micro: int) -> Batch:
    return data.train.batch(list(range(micro)))


def residual_bytes(targets: Iterable[nn.Parameter]) -> int:
    """Return bytes of the fp32 residuals that weights of lower precision leave beside them."""
    return sum(
        FP32 * t.numel() for t in targets if t.dtype in (torch.bfloat16, torch.float16)
    )


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
