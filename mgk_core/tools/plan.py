"""What a run would do: steps, parameters, memory and disk, plugins and hooks. Trains and writes nothing.

The model is built and the data are read, each phase's adapter is attached to the untouched base and
taken off again, and a batch or a few items go through the model to see what each part of the work holds in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter, Saves, base_state_dict
from mgk_core.contract.bundle import PhaseData, Probe
from mgk_core.contract.hookspecs import spec_names
from mgk_core.contract.progress import activity, track
from mgk_core.contract.sampling import steps_of
from mgk_core.contract.settings import MANY, ONE, PhaseConfig
from mgk_core.model.device import process_peak, reset_process_peak, resident
from mgk_core.record.events import Events, Sink, ignore
from mgk_core.record.journal import Journal
from mgk_core.record.store import Store
from mgk_core.run.attached import attached
from mgk_core.run.session import Session
from mgk_core.run.setup import Prepared, open_session
from mgk_core.tools.footprint import memory_of, residual_bytes, scoring, size_of
from mgk_core.tools.shares import Share, share_of


@runtime_checkable
class Keeps(Protocol):
    """Optional promise of a ``retention`` entry's spec: how much it leaves on disk for later phases."""

    def kept_bytes(
        self, shapes: Mapping[str, tuple[int, int]], examples: int = 0
    ) -> int:
        """Return bytes. shapes: weight name → (out, in). examples: rows of the phase's training set."""


@frozen
class ProbePlan:
    """One probe that will be scored in every row."""

    name: str
    phase: str
    metric: str
    split: str
    items: int


@frozen
class PhasePlan:
    """One phase. memory, disk: part → bytes. plugins: slot → ``type (plugin)``. rank: what one process does of a step."""

    name: str
    title: str
    index: int
    examples: int
    batch_size: int
    micro_batch: int
    steps: int
    adapter: str
    targets: int
    trainable: int
    share: float
    plugins: Mapping[str, str]
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    probes: tuple[ProbePlan, ...]
    rank: Share
    notes: tuple[str, ...] = ()


@frozen
class Plan:
    """A whole run. runtime: bytes of the process beside the base's weights. tried: the most bytes
    that the process held while it planned, which loads everything and tries each kind of work once.
    ranks: processes of the run; memory is that of each.

    Beside the weights there are Python, its libraries, a tokenizer, and copies of weights in other precisions.
    """

    name: str
    title: str
    base: str
    device: str
    threads: int
    seed: int
    parameters: int
    base_bytes: int
    runtime: int
    tried: int
    phases: tuple[PhasePlan, ...]
    probes: tuple[ProbePlan, ...]
    hooks: Mapping[str, tuple[str, ...]]
    conflicts: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    ranks: int = 1

    @property
    def peak(self) -> int:
        """Return bytes of memory of the largest phase, with everything beside the weights; of each process."""
        largest = max((sum(p.memory.values()) for p in self.phases), default=0)
        return max(self.tried, self.runtime + largest)

    @property
    def disk(self) -> int:
        """Return bytes that the finished run directory takes; checkpoints come and go."""
        lasting = sum(
            v for p in self.phases for k, v in p.disk.items() if k != "checkpoints"
        )
        transient = max((p.disk["checkpoints"] for p in self.phases), default=0)
        return lasting + transient + self.base_bytes


def make_plan(prepared: Prepared, *, ranks: int = 1, sink: Sink = ignore) -> Plan:
    """Plan a run of so many processes.

    :raises ConfigError: phases that cannot be begun, all of them, and why
    """
    with tempfile.TemporaryDirectory(
        prefix="mgk-plan-"
    ) as scratch:  # a phase's hooks get a folder
        return _plan(prepared, Store(Path(scratch)), ranks, sink)


def _plan(prepared: Prepared, store: Store, ranks: int, sink: Sink) -> Plan:
    reset_process_peak()
    before = resident()
    session = open_session(prepared, store, Journal(store), Events(sink))
    weights = base_state_dict(session.bundle.model)
    weights_on_cpu = size_of(t for t in weights.values() if t.device.type == "cpu")
    config, evaluation = session.config, scoring(session)
    with activity("measuring memory"):
        phases = tuple(
            _phase(session, index, evaluation, ranks)
            for index in track(range(len(config.phases)), "phases")
        )
    # Now every library is loaded, and whatever is made of the weights at their first use is there.
    runtime = max(before, resident() - weights_on_cpu)
    tried = process_peak()
    return Plan(
        name=config.name,
        title=config.title,
        base=str(getattr(config.base, "id", None) or config.base.type),
        device=str(session.device),
        threads=torch.get_num_threads(),
        seed=config.run.seed,
        parameters=sum(t.numel() for t in weights.values()),
        base_bytes=size_of(weights.values()),
        runtime=runtime,
        tried=tried,
        phases=phases,
        probes=_probes(session, config.phases[-1], session.own_probes),
        hooks=_hooks(session),
        conflicts=tuple(conflicts(session)),
        warnings=(
            *session.hooks.plugins.warnings(),
            *prepared.resolved.notes,
            *session.notes,
        ),
        ranks=ranks,
    )


def _phase(session: Session, index: int, evaluation: int, ranks: int = 1) -> PhasePlan:
    phase, model, seed = (
        session.config.phases[index],
        session.bundle.model,
        session.config.run.seed,
    )
    with attached(
        session.hooks, model, phase.adapter, phase.name, seed=seed
    ) as adapter:
        return _attached(session, index, adapter, evaluation, ranks)


def _attached(
    session: Session, index: int, adapter: Adapter, evaluation: int, ranks: int
) -> PhasePlan:
    phase, data = session.config.phases[index], session.data[index]
    train = phase.train
    micro = min(train.micro, len(data.train))
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    trainable = sum(p.numel() for p in parameters)
    total = sum(t.numel() for t in base_state_dict(session.bundle.model).values())
    optimizer = _optimizer_bytes(session, phase, adapter)
    rank = share_of(ranks, min(train.batch_size, len(data.train)), micro, trainable)
    return PhasePlan(
        name=phase.name,
        title=phase.title,
        index=index,
        examples=len(data.train),
        batch_size=train.batch_size,
        micro_batch=micro,
        steps=steps_of(len(data.train), train.batch_size, train.epochs, train.steps),
        adapter=phase.adapter.type,
        targets=len(adapter.targets()),
        trainable=trainable,
        share=trainable / total if total else 0.0,
        plugins=dict(_plugins(session, phase)),
        memory=memory_of(
            session,
            index,
            adapter,
            optimizer=optimizer,
            micro=micro,
            exchange=rank.buffers,
            evaluation=evaluation,
            collects=_statistics(session, data) > 0,
        ),
        disk=_disk(session, phase, data, adapter, optimizer),
        probes=_probes(session, phase, data.probes),
        rank=rank,
        notes=(*data.notes, *_recoveries(session, phase)),
    )


def _probes(
    session: Session, phase: PhaseConfig, probes: Sequence[Probe]
) -> tuple[ProbePlan, ...]:
    """Return what will be scored of probes, by a phase's limits."""
    count = phase.evaluate.count
    return tuple(
        ProbePlan(p.name, p.phase, p.metric, p.split, count(p.name, len(p.items)))
        for p in probes
    )


def _recoveries(session: Session, phase: PhaseConfig) -> Iterator[str]:
    """Describe how often a phase may be retried after a refusal."""
    if phase.recover:
        names = ", ".join(spec.type for spec in phase.recover)
        limit = session.config.run.max_recoveries
        yield f"after a refusal: {names}; at most {limit} recoveries in all (run.max_recoveries)"


def _optimizer_bytes(session: Session, phase: PhaseConfig, adapter: Adapter) -> int:
    """Make the phase's optimizer, let it see gradients of zero, and count what it keeps."""
    optimizer = session.hooks.make_optimizer(adapter, phase.optimizer)
    held = {
        id(p): p.detach().clone() for g in optimizer.param_groups for p in g["params"]
    }
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.copy_(held[id(parameter)])
            parameter.grad = None
    return size_of(
        v
        for state in optimizer.state.values()
        for v in state.values()
        if isinstance(v, Tensor)
    )


def _disk(
    session: Session,
    phase: PhaseConfig,
    data: PhaseData,
    adapter: Adapter,
    optimizer: int,
) -> dict[str, int]:
    """Return what one phase leaves in the run directory, and its checkpoints while it trains."""
    state = size_of(adapter.state_dict().values())
    kept = {
        "adapter": state * (2 if isinstance(adapter, Saves) else 1),
        "residual": residual_bytes([t.parameter for t in adapter.targets().values()]),
        "statistics": _statistics(session, data),
        "checkpoints": (state + optimizer) * phase.train.keep_checkpoints,
        "records": _records(session, phase, data, adapter),
    }
    return kept | (
        {"baseline statistics": _statistics(session, data)}
        if phase is session.config.phases[0]
        else {}
    )


def _records(
    session: Session, phase: PhaseConfig, data: PhaseData, adapter: Adapter
) -> int:
    """Return bytes of what a phase adds to scores, metrics, retention matrix, journal and ledger, rounded up.

    The figures are the largest seen of each line and value of these files.
    """
    settings, train = phase.evaluate, phase.train
    probes = [p for p in session.probes if p.split == settings.split]
    items = sum(settings.count(p.name, len(p.items)) for p in probes)
    row = 1000 * len(probes) + 28 * items
    steps = steps_of(len(data.train), train.batch_size, train.epochs, train.steps)
    lines = 500 * math.ceil(steps / train.log_every)
    return (
        14_000
        + 300 * len(adapter.targets())
        + lines
        + row * (2 if phase is session.config.phases[0] else 1)
    )


def _statistics(session: Session, data: PhaseData) -> int:
    """Ask every retention entry of the pipeline what a phase leaves for the later ones; each kind once."""
    weights = base_state_dict(session.bundle.model)
    shapes = {
        n: (weights[n].shape[0], math.prod(weights[n].shape[1:]))
        for n in session.targets
        if n in weights
    }
    specs = {
        repr(s): s
        for p in session.config.phases
        for s in (*p.retention, *p.recover, *p.observe)
    }
    return sum(
        s.kept_bytes(shapes, len(data.train))
        for s in specs.values()
        if isinstance(s, Keeps)
    )


def _plugins(session: Session, phase: PhaseConfig) -> Iterator[tuple[str, str]]:
    """Yield slot → type and the plugin that answers for it."""
    registry = session.hooks.plugins.registry
    yield (
        "base",
        f"{session.config.base.type} ({registry.find('base', session.config.base.type).plugin})",
    )
    for slot in ONE:
        spec = getattr(phase, slot)
        yield slot, f"{spec.type} ({registry.find(slot, spec.type).plugin})"
    for slot in MANY:
        named = [
            f"{s.type} ({registry.find(slot, s.type).plugin})"
            for s in getattr(phase, slot)
        ]
        if named:
            yield slot, ", ".join(named)


def _hooks(session: Session) -> dict[str, tuple[str, ...]]:
    """Return hook → the plugins that implement it, in the order in which they are called."""
    calls = {
        hook: tuple(session.hooks.plugins.call_order(hook)) for hook in spec_names()
    }
    return {hook: names for hook, names in calls.items() if names}


def conflicts(session: Session) -> Iterator[str]:
    """List types registered by two plugins; if the pipeline uses one, it was already refused."""
    claims: dict[tuple[Any, str], list[str]] = {}
    for claim in session.hooks.plugins.registry:
        claims.setdefault((claim.slot, claim.type), []).append(claim.plugin)
    for (slot, type_), owners in sorted(claims.items()):
        if len(owners) > 1:
            yield f"{slot} type {type_!r} is claimed by {' and '.join(owners)}"
