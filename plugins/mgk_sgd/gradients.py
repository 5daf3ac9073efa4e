"""Where a step's gradients come from: autograd, or a bundle's own way once it has proved itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mgk_core.contract.bundle import Batch, GradientFn, OwnGradients
from mgk_core.contract.context import PhaseContext

AGREE = 1e-5
"""Largest relative 2-norm between two fp32 ways to one gradient; both round some hundred times at 6e-8."""


def choose(ctx: PhaseContext, parameters: Sequence[Tensor], *, own: bool) -> GradientFn:
    """Return the gradient function of a phase; the bundle's own where there is one and it agrees."""
    by_autograd = autograd_gradients(ctx, parameters)
    if (
        not own
        or ctx.objective is not None
        or not isinstance(ctx.bundle, OwnGradients)
        or ctx.adapter is None
        or ctx.data is None
    ):
        return by_autograd
    offered = ctx.bundle.gradient_function(ctx.adapter, parameters)
    if offered is None:
        return by_autograd
    batch = ctx.data.train.batch(list(range(min(8, len(ctx.data.train)))))
    return offered if agree(ctx, offered, by_autograd, batch) else by_autograd


def autograd_gradients(ctx: PhaseContext, parameters: Sequence[Tensor]) -> GradientFn:
    """Return the gradient function that works for every bundle, adapter and objective."""

    def gradients(batch: Batch) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        total, count = ctx.loss(batch)
        found = torch.autograd.grad(total, parameters, materialize_grads=True)
        return total.detach(), count, found

    return gradients


def agree(
    ctx: PhaseContext, offered: GradientFn, reference: GradientFn, batch: Batch
) -> bool:
    """Return whether two ways give the same loss and gradients, as in training (dropout would show).

    Once per phase; it waits for the device. torch's random state is left as it was.
    """
    training = ctx.model.training
    ctx.model.train()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            expected, count, gradients = reference(batch)
            found, own_count, own_gradients = offered(batch)
    finally:
        ctx.model.train(training)
    if float(count) != float(own_count) or len(gradients) != len(own_gradients):
        return False
    pairs = [
        (expected.reshape(1), found.reshape(1)),
        *zip(gradients, own_gradients, strict=True),
    ]
    return all(_close(e.double(), f.double()) for e, f in pairs)


def _close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    return bool((found - expected).norm() <= AGREE * expected.norm())
