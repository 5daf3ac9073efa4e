"""What a suite is made of: tasks in an order, and the model that starts on the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from mgk_core.contract.bundle import Batch, Bundle, TrainSet


@frozen(eq=False)
class Task:
    """One task: what is learnt, and how good the model is at it (higher is better)."""

    name: str
    train: TrainSet = field(repr=False)
    test: Batch = field(repr=False)


@frozen(eq=False)
class Suite:
    """A base task and those that follow. build: seed → a fresh model; score: of one task's test set.

    unit: what the score counts. settings: all that shapes the suite; ``recipe`` is how it is trained.
    """

    name: str
    unit: str
    tasks: tuple[Task, ...]
    build: Callable[[int], Bundle]
    score: Callable[[Bundle, Task], float]
    settings: dict[str, Any]


@frozen
class Recipe:
    """How each task is trained; the defaults are those of the suites on digits.

    base_epochs: of the base task, where the base is to be better trained than the phases are.
    """

    epochs: float = 20
    base_epochs: float = 20
    batch_size: int = 64
    lr: float = 3e-3
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
