"""What the tests of mgk_retention share: small models, trained adapters, contexts made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor, nn

import mgk
from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.context import PhaseContext, Remembered
from mgk_core.contract.settings import PhaseConfig, RunConfig, TrainSettings
from mgk_core.contract.specs import Spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins


@frozen(eq=False)
class Examples:
    """A batch: inputs (n, in), targets (n, out)."""

    inputs: Tensor
    targets: Tensor


class Rows:
    """Training rows of the small network."""

    digest = "rows"

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows) -> Examples:
        return Examples(self.inputs[list(rows)], self.targets[list(rows)])


class Bundle:
    """A network with squared error; batches can be taken apart."""

    tokenizer = None
    device = torch.device("cpu")

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    def loss(self, batch: Examples):
        return (
            self.model(batch.inputs) - batch.targets
        ).square().sum() / 2, torch.tensor(float(len(batch.inputs)))

    def outputs(self, batch: Examples, positions=None):
        found = self.model(batch.inputs)
        return found if positions is None else found[positions]

    def score(self, items):
        raise NotImplementedError

    def valid(self, batch):
        return None

    def save(self, directory):
        raise NotImplementedError

    def unpack(self, batch: Examples):
        return [
            Examples(x, y)
            for x, y in zip(batch.inputs.split(1), batch.targets.split(1), strict=True)
        ]

    def pack(self, examples):
        return Examples(
            torch.cat([e.inputs for e in examples]),
            torch.cat([e.targets for e in examples]),
        )


@pytest.fixture(scope="session")
def hooks() -> Hooks:
    """The installed plugins."""
    return Hooks(load_plugins())


def network(seed: int = 0) -> nn.Module:
    """Three non-square layers, the last two of one shape but for the output."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 4)
    )
    return model.requires_grad_(False)


def rows(n: int = 40, *, seed: int = 0, inside: int = 6, outside: int = 4) -> Rows:
    """Unrelated inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    return Rows(
        torch.randn(n, inside, generator=generator),
        torch.randn(n, outside, generator=generator),
    )


def random_adapter(model: nn.Module, type_: str = "lora", *, seed: int = 0, **options):
    """An adapter whose factors are far from their start; alpha is not the rank."""
    adapter = mgk.attach(model, type_, **({"rank": 3, "alpha": 5} | options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.fixture
def context(hooks):
    """Make a context: ``context(model, {"drift-guard": {...}}, phases=2)``."""

    def make(
        model: nn.Module,
        retention: dict,
        *,
        phases: int = 2,
        data: Rows | None = None,
        **options,
    ) -> PhaseContext:
        registry = hooks.plugins.registry
        specs = tuple(
            structure_spec(registry, "retention", {"type": n, **o})
            for n, o in retention.items()
        )
        spec = Spec(type="test")
        phase = PhaseConfig(
            name="p0", data=spec, adapter=spec, optimizer=spec, step=spec, merge=spec, retention=specs,
            train=TrainSettings(batch_size=8), **options,
        )  # fmt: skip
        config = RunConfig(
            name="t",
            base=spec,
            phases=tuple(evolve(phase, name=f"p{i}") for i in range(phases)),
        )
        names = tuple(n for n, p in base_state_dict(model).items() if p.dim() == 2)
        return PhaseContext(
            config=config, phase=phase, index=0, bundle=Bundle(model), device=torch.device("cpu"), directory=Path(),
            data=PhaseData(train=data or rows()), targets=names,
        )  # fmt: skip

    return make


def remembered(**phases: dict[str, Tensor]) -> tuple[Remembered, ...]:
    """A history of these statistics."""
    return tuple(
        Remembered(name, Path(name), lambda kept=kept: kept)
        for name, kept in phases.items()
    )


@pytest.fixture
def small() -> SimpleNamespace:
    """The makers above: network, rows, random_adapter, remembered, Bundle."""
    return SimpleNamespace(
        network=network,
        rows=rows,
        random_adapter=random_adapter,
        remembered=remembered,
        Bundle=Bundle,
    )
