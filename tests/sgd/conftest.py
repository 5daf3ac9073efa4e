"""A real phase of the reference pipeline, ready to make a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.adapter import state_of
from mgk_core.contract.context import PhaseContext, StepContext
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins

MakePhase = Callable[..., StepContext]


@pytest.fixture(scope="session")
def hooks() -> Hooks:
    """All installed plugins."""
    return Hooks(load_plugins())


@pytest.fixture
def make_phase(hooks: Hooks, tmp_path: Path) -> MakePhase:
    """Return a maker of step contexts: (phase's overrides, terms, optimizer class and its options)."""

    def make(
        table: dict[str, Any] | None = None,
        *,
        terms: Any = (),
        optimizer: Any = None,
        steps: int = 60,
    ) -> StepContext:
        overrides = {"phases.plain_text": table or {}}
        config = resolve(
            load_tree("textmodel", overrides=overrides), hooks.plugins.registry
        ).config
        phase = config.phases[0]
        bundle = hooks.build_model(config.base, torch.device("cpu"))
        torch.manual_seed(0)
        adapter = hooks.attach_adapter(bundle.model, phase.adapter, phase.name)
        state_of(bundle.model).adapters.append(adapter)
        ctx = PhaseContext(
            config=config,
            phase=phase,
            index=0,
            bundle=bundle,
            device=torch.device("cpu"),
            directory=tmp_path,
            adapter=adapter,
            data=hooks.load_data(phase.data, bundle),
            steps=steps,
        )
        ctx.optimizer = (
            optimizer(adapter.parameters())
            if optimizer
            else hooks.make_optimizer(adapter, phase.optimizer)
        )
        return StepContext(ctx, tuple(t(adapter) for t in terms))

    return make


@pytest.fixture
def batches() -> Callable[[StepContext, int], list[Any]]:
    """Return n batches of sixteen of a phase's training data."""
    return lambda ctx, n: [
        ctx.phase.data.train.batch(list(range(16 * i, 16 * i + 16))) for i in range(n)
    ]
