"""The reference program, transcribed in plain torch: nothing of mgk is used here.

A 64-128-128-32 network with GELU; per phase new LoRA factors on layers 1 and 2, squared error summed
over the outputs and averaged over the batch, plain SGD, and W += B @ A * alpha / rank at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RANK, ALPHA = 8, 16
LEARNING_RATES = (1e-3, 5e-4, 3e-4)


def forward(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    factors: Sequence[tuple[Tensor, Tensor]],
    x: Tensor,
) -> Tensor:
    """x: (batch, 64)   factors: (A, B) of layers 1 and 2   returns: (batch, 32)."""
    for i, (w, c) in enumerate(zip(weights, biases, strict=True)):
        z = x @ w.T + c
        if i < len(factors):
            a, b = factors[i]
            z = z + ALPHA / RANK * (x @ a.T) @ b.T
        x = torch.nn.functional.gelu(z) if i < len(weights) - 1 else z
    return x


def train_phase(
    weights: list[Tensor],
    biases: Sequence[Tensor],
    factors: Sequence[tuple[Tensor, Tensor]],
    batches: Sequence[tuple[Tensor, Tensor]],
    lr: float,
) -> list[float]:
    """Train one phase on its batches in order, merge it into ``weights``; return each step's loss."""
    parameters = [p.clone().requires_grad_() for pair in factors for p in pair]
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    losses = []
    for x, y in batches:
        loss = ((forward(weights, biases, pairs, x) - y) ** 2).sum(1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, grad in zip(parameters, gradients, strict=True):
                p -= lr * grad  # noqa: PLW2901 - the reference, word for word
        losses.append(loss.item())
    with torch.no_grad():
        for i, (a, b) in enumerate(pairs):
            weights[i] = weights[i] + b @ a * ALPHA / RANK
    return losses
