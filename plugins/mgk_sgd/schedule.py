"""Learning rates as a pure function of the step, so that a resumed run has the same ones."""

from __future__ import annotations

import math
from typing import Any

from attrs import frozen

INVERSE_SQRT_SCALE = 10_000
"""Time scale of ``inverse_sqrt`` without warm-up, in steps, as in transformers."""


@frozen
class Schedule:
    """The factor on an optimizer's learning rates. total: steps of the whole phase.

    warmup, decay: in steps. floor: share of the rate at the end. cycles, power: of one schedule each.
    """

    total: int
    kind: str = "constant"
    warmup: int = 0
    floor: float = 0.0
    decay: int = 0
    cycles: int = 1
    power: float = 1.0

    @staticmethod
    def of(spec: Any, total: int) -> Schedule:
        """Read the schedule's keys; a foreign spec without them means a constant rate."""
        warmup = getattr(spec, "warmup_steps", 0)
        ratio = getattr(spec, "warmup_ratio", None)
        decay = getattr(spec, "decay_ratio", None)
        return Schedule(
            total,
            getattr(spec, "schedule", "constant"),
            warmup if ratio is None else math.ceil(total * ratio),
            getattr(spec, "min_lr_ratio", 0.0),
            math.ceil(total * (0.1 if decay is None else decay)),
            getattr(spec, "cycles", None) or 1,
            getattr(spec, "power", None) or 1.0,
        )

    def factor(self, step: int) -> float:
        """Return the factor at a 0-based step: (step + 1) / warmup at first, then falling to ``floor``.

        The fall is over the steps after warm-up; at ``total`` and beyond it is ``floor``.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind.startswith("constant"):
            return 1.0
        if self.kind == "inverse_sqrt":
            scale = self.warmup or INVERSE_SQRT_SCALE
            return math.sqrt(scale / (step - self.warmup + scale))
        return self.floor + (1 - self.floor) * self._left(step - self.warmup)

    def _left(self, after: int) -> float:
        """Return what is left of the fall, from 1 to 0. after: steps since warm-up."""
        falling = max(1, self.total - self.warmup)
        if self.kind == "warmup_stable_decay":
            stable = max(0, falling - self.decay)
            return 1 - min(1.0, max(0, after - stable) / max(1, falling - stable))
        progress = min(1.0, after / falling)
        if self.kind == "linear":
            return 1 - progress
        if self.kind == "polynomial":
            return float((1 - progress) ** self.power)
        turns = progress
        if self.kind == "cosine_with_restarts" and progress < 1:
            turns = (self.cycles * progress) % 1
        return (1 + math.cos(math.pi * turns)) / 2
