"""One cell of the table: a method through a suite of small tasks, each a phase of mgk's own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, evolve
from torch import Tensor

import mgk
from mgk_bench.cell import Cell
from mgk_bench.methods import Method
from mgk_bench.tasks import Recipe, Suite, Task
from mgk_core.contract.bundle import (
    Batch,
    Bundle,
    PhaseData,
    TrainSet,
    Unpacks,
    require_unpacks,
)
from mgk_core.contract.sampling import Order, steps_of


@define
class Clock:
    """CPU seconds of this process spent inside its blocks."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - began


def base_of(suite: Suite, seed: int) -> dict[str, Tensor]:
    """Train a fresh model on the first task, all weights; return its state."""
    bundle = suite.build(seed)
    recipe = evolve(recipe_of(suite), epochs=recipe_of(suite).base_epochs)
    _train_all(bundle, suite.tasks[0].train, recipe, seed)
    return {k: v.clone() for k, v in bundle.model.state_dict().items()}


def run_cell(
    suite: Suite, method: Method, seed: int, base: Mapping[str, Tensor]
) -> Cell:
    """Take the base through the suite's tasks. The same seed gives the same numbers."""
    bundle, clock = suite.build(seed), Clock()
    bundle.model.load_state_dict(base)
    tasks = suite.tasks[1:]
    if method.joint:
        tasks = (joint_task(bundle, suite.tasks),)
    rows, last = [_row(suite, bundle)], None
    for number in range(len(tasks)):
        with clock.running():
            last = _phase(suite, method, seed, bundle, tasks, number, last)
        rows.append(_row(suite, bundle))
    taught = [1] * len(suite.tasks) if method.joint else range(len(suite.tasks))
    kept = 0 if last is None else last.kept_bytes
    return Cell(
        method=method.name,
        suite=suite.name,
        seed=seed,
        rows=tuple(rows),
        taught=tuple(taught),
        seconds=clock.seconds,
        kept_bytes=kept,
        tasks=tuple(task.name for task in suite.tasks),
        needs_old_data=method.needs_old_data,
    )


def _phase(
    suite: Suite,
    method: Method,
    seed: int,
    bundle: Bundle,
    tasks: Sequence[Task],
    number: int,
    last: mgk.PhaseResult | None,
) -> mgk.PhaseResult:
    """Run one task as a phase; the base's statistics come from the task that it was made on."""
    table = phase_table(method, recipe_of(suite))
    data = PhaseData(train=tasks[number].train)
    if last is None:
        data = evolve(data, calibration=_batches(suite))
    return mgk.run_phase(
        bundle,
        data,
        table,
        name=tasks[number].name,
        after=last,
        then=[table] * (len(tasks) - number - 1),
        seed=seed,
    )


def phase_table(method: Method, recipe: Recipe) -> dict[str, Any]:
    """Return the tables of a phase, as `mgk.run_phase` takes them."""
    adapter = {
        "type": "lora",
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "targets": list(recipe.targets),
    }
    rate = recipe.lr if method.lr is None else method.lr
    return {
        "adapter": dict(method.adapter) or adapter,
        "optimizer": {"type": "adamw", "lr": rate},
        "train": {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "log_every": 100_000,
            "checkpoint_minutes": None,
        },
        "retention": dict(method.retention),
        "transform": dict(method.transform),
    }


def _batches(suite: Suite) -> tuple[Batch, ...]:
    train, size = suite.tasks[0].train, recipe_of(suite).batch_size
    rows = range(len(train))
    return tuple(train.batch(rows[i : i + size]) for i in range(0, len(train), size))


def joint_task(bundle: Bundle, tasks: Sequence[Task]) -> Task:
    """Return one task with the training sets of all."""
    parts = [task.train for task in tasks]
    return Task("joint", Union(require_unpacks(bundle, "joint"), parts), tasks[0].test)


def recipe_of(suite: Suite) -> Recipe:
    """Return how the suite's tasks are trained."""
    recipe: Recipe = suite.settings["recipe"]
    return recipe


def _row(suite: Suite, bundle: Bundle) -> tuple[float, ...]:
    return tuple(suite.score(bundle, task) for task in suite.tasks)


@define(eq=False)
class Union:
    """Several training sets as one."""

    bundle: Unpacks
    parts: list[TrainSet]
    digest: str = "union"

    def __len__(self) -> int:
        return sum(len(p) for p in self.parts)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows, those of one part together."""
        found: list[Any] = []
        start = 0
        for part in self.parts:
            inside = [r - start for r in rows if start <= r < start + len(part)]
            found += self.bundle.unpack(part.batch(inside)) if inside else []
            start += len(part)
        return self.bundle.pack(found)


def _train_all(bundle: Bundle, train: TrainSet, recipe: Recipe, seed: int) -> None:
    """Train every weight with Adam; afterwards all are frozen again."""
    parameters = list(bundle.model.parameters())
    bundle.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.lr, weight_decay=0.0, fused=True
    )
    order = Order(len(train), recipe.batch_size, seed)
    for step in range(steps_of(len(train), recipe.batch_size, recipe.epochs, None)):
        total, count = bundle.loss(train.batch(order.rows(step)))
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(total / count, parameters), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
    bundle.model.requires_grad_(False).eval()
