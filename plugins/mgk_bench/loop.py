"""One cell of the table: a method through a suite, by mgk's own hooks and training loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from mgk_bench.methods import Method
from mgk_bench.tasks import Recipe, Suite, Task
from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import state_of
from mgk_core.contract.bundle import (
    Batch,
    Bundle,
    PhaseData,
    TrainSet,
    Unpacks,
    require_unpacks,
)
from mgk_core.contract.context import PhaseContext, Remembered, StepContext
from mgk_core.contract.outcome import Proposal
from mgk_core.contract.sampling import Order, steps_of
from mgk_core.contract.settings import (
    PhaseConfig,
    RunConfig,
    RunSettings,
    TrainSettings,
)
from mgk_core.contract.specs import Spec
from mgk_core.host.hooks import Hooks
from mgk_core.record.checkpoint import Progress
from mgk_core.record.events import Events
from mgk_core.run.training import Trainer


@frozen
class Cell:
    """What one method did on one suite with one seed. rows: scores of all tasks, after each task."""

    method: str
    suite: str
    seed: int
    rows: tuple[tuple[float, ...], ...]
    seconds: float
    kept_bytes: int


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
    recipe = _recipe(suite)
    _train_all(
        bundle, suite.tasks[0].train, evolve(recipe, epochs=recipe.base_epochs), seed
    )
    return {k: v.clone() for k, v in bundle.model.state_dict().items()}


def run_cell(
    hooks: Hooks, suite: Suite, method: Method, seed: int, base: Mapping[str, Tensor]
) -> Cell:
    """Take the base through the suite's tasks. The same seed gives the same numbers."""
    bundle, clock = suite.build(seed), Clock()
    bundle.model.load_state_dict(base)
    joint = method.kind in ("joint", "joint-full")
    tasks = (suite.tasks[0], _union(suite, bundle)) if joint else suite.tasks
    rows, phases = (
        [_row(suite, bundle)],
        Phases(hooks, suite, tasks, method, seed, bundle),
    )
    for number, task in enumerate(tasks[1:]):
        with clock.running():
            if method.kind in ("full", "joint-full"):
                _train_all(bundle, task.train, _recipe(suite), seed + number + 1)
            else:
                phases.run(number)
        rows.append(_row(suite, bundle))
    return Cell(
        method.name, suite.name, seed, tuple(rows), clock.seconds, phases.kept_bytes
    )


def _union(suite: Suite, bundle: Bundle) -> Task:
    return Task(
        "joint",
        Union(require_unpacks(bundle, "joint"), [t.train for t in suite.tasks]),
        suite.tasks[0].test,
    )


def _recipe(suite: Suite) -> Recipe:
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


@define(eq=False)
class Phases:
    """The later tasks as phases of a pipeline, without a run directory: hooks, loop and merge are mgk's."""

    hooks: Hooks
    suite: Suite
    tasks: tuple[Task, ...]
    method: Method
    seed: int
    bundle: Bundle
    config: RunConfig = field(init=False)
    history: tuple[Remembered, ...] = ()
    targets: tuple[str, ...] = ()
    kept_bytes: int = 0

    def __attrs_post_init__(self) -> None:
        phases = tuple(self._phase(task) for task in self.tasks[1:])
        self.config = RunConfig(
            name=f"bench-{self.suite.name}",
            base=Spec(type="bench"),
            phases=phases,
            run=RunSettings(seed=self.seed),
        )

    def _phase(self, task: Task) -> PhaseConfig:
        recipe, registry = _recipe(self.suite), self.hooks.plugins.registry
        adapter = {
            "type": "lora",
            "rank": recipe.rank,
            "alpha": recipe.alpha,
            "targets": list(recipe.targets),
        }
        methods = [
            {"type": name, **options} for name, options in self.method.retention.items()
        ]
        return PhaseConfig(
            name=task.name,
            data=Spec(type="bench"),
            adapter=structure_spec(registry, "adapter", adapter),
            optimizer=structure_spec(
                registry, "optimizer", {"type": "adamw", "lr": recipe.lr}
            ),
            step=structure_spec(registry, "step", {"type": "standard"}),
            merge=structure_spec(registry, "merge", {"type": "exact"}),
            train=TrainSettings(
                epochs=recipe.epochs,
                batch_size=recipe.batch_size,
                log_every=100_000,
                checkpoint_minutes=None,
            ),
            retention=tuple(structure_spec(registry, "retention", m) for m in methods),
        )

    def _attach(self, index: int) -> Any:
        torch.manual_seed(self.seed * 1_000_003 + index)
        phase = self.config.phases[index]
        adapter = self.hooks.attach_adapter(
            self.bundle.model, phase.adapter, phase.name
        )
        self.targets = tuple(adapter.targets())
        return adapter

    def _context(self, index: int) -> PhaseContext:
        return PhaseContext(
            config=self.config,
            phase=self.config.phases[index],
            index=index,
            bundle=self.bundle,
            device=self.bundle.device,
            directory=Path(),
            data=PhaseData(train=self.tasks[index + 1].train),
            targets=self.targets,
            history=self.history,
        )

    def _base_statistics(self) -> None:
        ctx, train, size = (
            self._context(0),
            self.tasks[0].train,
            _recipe(self.suite).batch_size,
        )
        rows = range(len(train))
        batches = tuple(
            train.batch(rows[i : i + size]) for i in range(0, len(train), size)
        )
        ctx.base_phase, ctx.data = True, PhaseData(train=train, calibration=batches)
        self._remember("base", self.hooks.collect_statistics(ctx))

    def _remember(self, name: str, tensors: dict[str, Tensor]) -> None:
        if tensors:
            self.kept_bytes += sum(
                t.numel() * t.element_size() for t in tensors.values()
            )
            self.history = (
                *self.history,
                Remembered(name, Path(name), lambda: tensors),
            )

    def run(self, index: int) -> None:
        """Run one phase; the first collects the base's statistics before."""
        if index == 0:
            self._attach(0).detach()
            self._base_statistics()
        hooks, ctx, model = self.hooks, self._context(index), self.bundle.model
        ctx.adapter = adapter = self._attach(index)
        state_of(model).adapters.append(adapter)
        hooks.init_adapter(adapter, ctx)
        assert ctx.data is not None  # noqa: S101 - set above
        ctx.steps = steps_of(
            len(ctx.data.train),
            ctx.phase.train.batch_size,
            ctx.phase.train.epochs,
            None,
        )
        ctx.optimizer = hooks.make_optimizer(adapter, ctx.phase.optimizer)
        terms = hooks.loss_terms(ctx)
        step = hooks.make_step(StepContext(ctx, tuple(terms.values()), tuple(terms)))
        Trainer(ctx, step, Events(), Progress(), lambda: None, lambda: False).run(
            ctx.steps
        )
        model.eval()
        proposal = evolve(hooks.propose_merge(ctx, Proposal()), undo="memory")
        report = hooks.merge(model, adapter, proposal, ctx.phase.merge)
        with adapter.disabled():
            self._remember(ctx.phase.name, hooks.collect_statistics(ctx))
        adapter.detach()
        state_of(model).adapters.remove(adapter)
        if report.undo is not None:
            report.undo.release()
