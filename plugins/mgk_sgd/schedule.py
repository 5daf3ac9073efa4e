"""Learning rates as a pure function of the step, so that a resumed run has the same ones."""

from __future__ import annotations

import math
from typing import Any

from attrs import frozen


@frozen
class Schedule:
    """The factor on an optimizer's learning rates. total: steps of the whole phase."""

    total: int
    kind: str = "constant"
    warmup: int = 0
    floor: float = 0.0

    @staticmethod
    def of(spec: Any, total: int) -> Schedule:
        """Read the schedule's keys; a foreign spec without them means a constant rate."""
        return Schedule(
            total,
            getattr(spec, "schedule", "constant"),
            getattr(spec, "warmup_steps", 0),
            getattr(spec, "min_lr_ratio", 0.0),
        )

    def factor(self, step: int) -> float:
        """Return the factor at a 0-based step: (step + 1) / warmup at first, then falling to ``floor``.

        The fall is over the steps after warm-up; at ``total`` and beyond it is ``floor``.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        left = (
            1 - progress
            if self.kind == "linear"
            else (1 + math.cos(math.pi * progress)) / 2
        )
        return self.floor + (1 - self.floor) * left
