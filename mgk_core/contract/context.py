"""What a hook gets: one context object per phase, rather than ten arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import Batch, Bundle, PhaseData, Probe, Score
from mgk_core.contract.objective import Objective
from mgk_core.contract.outcome import Proposal
from mgk_core.contract.settings import PhaseConfig, RunConfig
from mgk_core.contract.world import ALONE, World

FILES = "files"
"""Name of the folder for plugins' own files, below a phase's folder or the run's; mgk neither records nor verifies it."""


@frozen(eq=False)
class Remembered:
    """Statistics of the base or of a committed phase. Tensors are read when asked for."""

    phase: str
    path: Path
    read: Callable[[], dict[str, Tensor]] = field(repr=False)


def _tell_nobody(event: str, **data: Any) -> None:
    """Be the listener of a context that was made by hand."""


@define(eq=False)
class PhaseContext:
    """Everything that the plugins of one phase may read.

    adapter, data, optimizer are None before the step of the phase that makes them. objective: what
    the phase minimises, None for the base's own loss; `batch` and `loss` ask it. history:
    statistics of the base and of the phases before, in order. scores: rows of the retention
    matrix so far, the baseline (row 0 of the matrix) first. proposal: what the transition last proposed, for recoveries that
    change a part of it. directory: the phase's folder, where mgk records every file at the commit; on ranks
    other than the leader a temporary folder, so that what each plugin writes is written once. world: the
    processes of the run.
    `tell`: sends an event, `tell(name, **data)`; those that
    `mgk_core.record.events.KEPT` names are kept in metrics.jsonl.
    """

    config: RunConfig
    phase: PhaseConfig
    index: int
    bundle: Bundle
    device: torch.device
    directory: Path
    adapter: Adapter | None = None
    data: PhaseData | None = None
    optimizer: Any = None
    objective: Objective | None = None
    steps: int = 0
    targets: tuple[str, ...] = ()
    history: tuple[Remembered, ...] = ()
    scores: tuple[Mapping[str, Score], ...] = ()
    probes: tuple[Probe, ...] = ()
    extra_retention: tuple[Any, ...] = ()
    notes: list[str] = field(factory=list)
    base_phase: bool = False
    tell: Callable[..., None] = _tell_nobody
    proposal: Proposal | None = None
    world: World = ALONE
    _figures: list[Mapping[str, Tensor]] = field(factory=list, init=False)

    @property
    def files(self) -> Path:
        """A folder for what plugins write for themselves, such as a tracker's log.

        It is inside the phase's folder and made when it is asked for. Nothing in it is recorded or
        verified, so a plugin may write to it at any time, also after the phase has been committed.
        """
        folder = self.directory / FILES
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def model(self) -> nn.Module:
        """The bundle's model."""
        return self.bundle.model

    @property
    def seed(self) -> int:
        """A seed of this phase's own: a pure function of the run's seed and the phase's index."""
        return (self.config.run.seed * 1_000_003 + (self.index + 1) * 7919) % 2**31

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return a CPU generator seeded by run, phase and ``salt``."""
        return torch.Generator().manual_seed((self.seed + 104_729 * salt) % 2**63)

    def specs(self, cls: type[Any]) -> tuple[Any, ...]:
        """Return the phase's entries of a plugin's class, those that a recovery added included."""
        added = tuple(s for s in self.extra_retention if isinstance(s, cls))
        return (*self.phase.of(cls), *added)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return a micro-batch of training rows, as the phase's loss reads it."""
        if self.objective is not None:
            return self.objective.batch(rows)
        assert self.data is not None  # noqa: S101 - the runner loads data first
        return self.data.train.batch(rows)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (summed loss, count) of a micro-batch of `batch`, as the phase minimises it.

        Figures of an objective are kept for the log where gradients are enabled.
        """
        if self.objective is None:
            return self.bundle.loss(batch)
        found = self.objective.loss(batch)
        if torch.is_grad_enabled() and found.figures:
            self._figures.append(found.figures)
        return found.total, found.count

    def dev_batches(self) -> Sequence[Batch]:
        """Return the micro-batches of the dev set for `loss`."""
        if self.objective is not None:
            return self.objective.dev()
        return self.data.dev if self.data is not None else ()

    def take_figures(self) -> list[Mapping[str, Tensor]]:
        """Return the figures of the losses since the last call, in order."""
        found, self._figures = self._figures, []
        return found

    def train_batches(self, rows: Sequence[int], size: int) -> Iterable[Batch]:
        """Yield batches of the phase's own training data, ``size`` rows each, on the device."""
        assert self.data is not None  # noqa: S101 - the runner loads data first
        for start in range(0, len(rows), size):
            yield self.data.train.batch(rows[start : start + size])


@frozen
class StepOut:
    """What one optimizer step reports; tensors stay on the device until they are read, once for many steps.

    A step that has read a figure already, as it may on the CPU, gives the number.

    loss: mean over what was learnt, without loss terms. terms: their sum. count: positions or
    examples. skipped: 1 where the update was left out because something was not finite.
    """

    loss: Tensor | float
    terms: Tensor | float | None
    grad_norm: Tensor | float | None
    count: Tensor | float
    skipped: Tensor | float | None
    lr: float


@runtime_checkable
class StepFn(Protocol):
    """One optimizer step; made once per phase, nothing of pluggy inside."""

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> StepOut:
        """Forward, backward, update. step: 0-based, global within the phase."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the optimizer's state as flat tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state over."""


@runtime_checkable
class Averages(Protocol):
    """Optional promise of a step: the weights that it trains on are not those to evaluate and merge.

    Schedule-free optimizers need it: what they train on is between the newest weights and their average.
    """

    def averaged(self) -> AbstractContextManager[None]:
        """Have the weights to evaluate in the adapter inside the block; afterwards the same bits as before."""

    def finish(self) -> None:
        """Put the weights to merge into the adapter for good; a later step continues from there."""


@runtime_checkable
class Observer(Protocol):
    """Gets the events of a phase. An observer with ``state_dict`` is checkpointed."""

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Take one event: ``{"event": "step" | "evaluation" | "checkpoint" | ..., ...}``."""


@frozen(eq=False)
class StepContext:
    """What `mgk_make_step` needs: the phase's context and the loss terms, already resolved.

    factor: step → factor on the optimizer's learning rates, in place of its own schedule; None: its own.
    """

    phase: PhaseContext
    terms: tuple[Callable[[int], Tensor], ...]
    named_terms: tuple[str, ...] = ()
    factor: Callable[[int], float] | None = None


__all__ = [
    "FILES",
    "Averages",
    "Observer",
    "PhaseContext",
    "Remembered",
    "StepContext",
    "StepFn",
    "StepOut",
]
