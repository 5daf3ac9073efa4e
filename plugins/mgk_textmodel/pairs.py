"""Batches of the reference network."""

from __future__ import annotations

import torch
from attrs import field, frozen
from torch import Tensor


@frozen(eq=False)
class Pairs:
    """A batch, or a probe's item. inputs: (n, in)   targets: (n, out)   count: n as a 0-dim tensor."""

    inputs: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    count: Tensor

    @staticmethod
    def of(inputs: Tensor, targets: Tensor) -> Pairs:
        """Make a batch; the count is filled on the device, so that no copy waits for it."""
        return Pairs(
            inputs, targets, torch.full((), float(len(inputs)), device=inputs.device)
        )
