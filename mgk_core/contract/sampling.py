"""How many steps a phase has, and which examples each of them sees."""

from __future__ import annotations

import math

import torch
from attrs import define, field


def steps_of(examples: int, batch_size: int, epochs: float, steps: int | None) -> int:
    """Return the number of optimizer steps; the last batch of an epoch may be smaller."""
    if steps is not None:
        return steps
    return max(1, round(math.ceil(examples / batch_size) * epochs))


@define(eq=False)
class Order:
    """Which rows a step sees: a pure function of seed and step."""

    examples: int
    batch_size: int
    seed: int
    _epoch: int = -1
    _rows: list[int] = field(factory=list)

    def rows(self, step: int) -> list[int]:
        """Return the rows of one optimizer step; every epoch is a new permutation."""
        epoch, place = divmod(step, -(-self.examples // self.batch_size))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._rows = torch.randperm(self.examples, generator=generator).tolist()
            self._epoch = epoch
        return self._rows[place * self.batch_size : (place + 1) * self.batch_size]


__all__ = ["Order", "steps_of"]
