"""Random numbers of a step: a function of (seed, step, micro-batch), where any are drawn at all.

So dropout draws the same masks wherever a micro-batch is computed, and whatever was computed before it.
Where nothing is drawn, torch's generator is left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import torch
from attrs import define, field

T = TypeVar("T")

TERMS = -1
"""Stands for the loss terms in place of a micro-batch's number."""


@define(eq=False)
class Draws:
    """Seeds torch's generators before each part of a step that draws from them."""

    seed: int
    device: torch.device
    _draws: dict[bool, bool] = field(factory=dict)

    def seeded(self, step: int, part: int, work: Callable[[], T]) -> T:
        """Do ``work`` with generators seeded for it. part: number of the micro-batch, or `TERMS`.

        Whether a phase draws at all is seen when a part of its kind is done for the first time.
        """
        kind = part == TERMS
        if not self._draws.get(kind, True):
            return work()
        before = self._states()
        key = hashlib.blake2b(f"{self.seed} {step} {part}".encode(), digest_size=7)
        torch.manual_seed(int.from_bytes(key.digest(), "little"))
        if kind in self._draws:
            return work()
        seeded = self._states()
        result = work()
        drawn = any(
            not torch.equal(a, b) for a, b in zip(seeded, self._states(), strict=True)
        )
        self._draws[kind] = drawn
        if not drawn:
            torch.set_rng_state(before[0])
            if len(before) > 1:
                torch.cuda.set_rng_state(before[1], self.device)
        return result

    def _states(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states
