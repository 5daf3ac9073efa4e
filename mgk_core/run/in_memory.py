"""One phase without a run directory: for notebooks and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field, frozen
from torch import Tensor

from mgk_core.config.structure import read_table
from mgk_core.config.tree import Tree
from mgk_core.contract.bundle import Bundle, PhaseData, Score
from mgk_core.contract.context import Remembered
from mgk_core.contract.errors import ConfigError, InputError, Problem, nearest
from mgk_core.contract.outcome import Outcome
from mgk_core.contract.settings import (
    MANY,
    EvaluateSettings,
    PhaseConfig,
    RunConfig,
    RunSettings,
    TrainSettings,
)
from mgk_core.contract.specs import Slot, Spec
from mgk_core.host.hooks import Hooks, installed_hooks
from mgk_core.record.checkpoint import rng_state, set_rng_state
from mgk_core.record.events import Events, Sink, ignore
from mgk_core.record.ledger import Ledger, PhaseEntry, environment
from mgk_core.record.run_directory import STATISTICS
from mgk_core.run.frozen_weights import FrozenWeights
from mgk_core.run.phase import PhaseRun
from mgk_core.run.phase_record import MemoryRecord
from mgk_core.run.resume import base_statistics
from mgk_core.run.scores import measure_row, retention_table
from mgk_core.run.session import PhaseSession
from mgk_core.run.setup import check_loss, targets_of

GIVEN = Spec(type="given")  # a base or data that the caller made
ONE: tuple[Slot, ...] = ("adapter", "optimizer", "step", "merge", "loss")
TABLES = (*ONE, *MANY, "train", "evaluate")
DEFAULTS: Mapping[Slot, str] = {
    "step": "standard",
    "merge": "exact",
    "loss": "likelihood",
}


@define(eq=False, kw_only=True)
class MemorySession(PhaseSession):
    """Phases on a model in memory. statistics: of the base and of each merged phase, by name."""

    records: dict[int, MemoryRecord] = field(factory=dict)
    statistics: dict[str, Mapping[str, Tensor]] = field(factory=dict)

    def record(self, index: int) -> MemoryRecord:
        """Return a phase's record, the same one each time."""
        return self.records.setdefault(index, MemoryRecord())

    def history(self, index: int) -> tuple[Remembered, ...]:
        """Return the statistics that were collected so far."""
        found = self.statistics.items()
        return tuple(
            Remembered(name, Path(name), _reader(kept)) for name, kept in found
        )


def _reader(tensors: Mapping[str, Tensor]) -> Any:
    return lambda: dict(tensors)


@frozen(eq=False)
class PhaseResult:
    """What a phase did to a model.

    outcome: committed, kept apart or rolled back, with the merge report and refusals. entry: its
    line of the ledger. scores: its row of the retention matrix. adapter: its tensors. statistics:
    what retention methods keep of it.
    """

    name: str
    outcome: Outcome
    entry: PhaseEntry
    scores: Mapping[str, Score]
    adapter: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    _session: MemorySession = field(repr=False)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the statistics that retention methods keep of the base and of all phases so far."""
        kept = self._session.statistics.values()
        return sum(t.nbytes for tensors in kept for t in tensors.values())

    @property
    def retention(self) -> dict[str, Any]:
        """The retention matrix so far, as in a run's retention.json."""
        taught = {p.name: p.phase for p in self._session.probes}
        measured = {name for _, row in self._session.rows for name in row}
        probes = {k: v for k, v in taught.items() if k in measured}
        return retention_table(self._session.rows, probes, self._session.marks)


def run_phase(
    bundle: Bundle,
    data: PhaseData,
    phase: PhaseConfig | Mapping[str, Any],
    *,
    name: str | None = None,
    after: PhaseResult | None = None,
    then: Sequence[PhaseConfig | Mapping[str, Any]] = (),
    seed: int = 0,
    hooks: Hooks | None = None,
    sink: Sink = ignore,
) -> PhaseResult:
    """Train one adapter on a model, gate it and merge it, as a phase of a pipeline does.

    :param bundle: the model; afterwards it has the merged weights, or its old ones where the phase
        was refused or kept apart
    :param data: training set, probes, verification batches. Its probes are scored before the phase,
        after it, and after each later one. Retention methods see the calibration batches of the
        first phase
    :param phase: the tables of a phase: ``{"adapter": {"type": "lora", "rank": 8}, "optimizer":
        {"type": "adamw", "lr": 1e-3}, "train": {"steps": 100}, "retention": {"replay": {}}}``
    :param name: default: ``phase_1``, ``phase_2`` …
    :param after: the result of the phase before on the same model: its probes are scored again, its
        statistics go to retention methods
    :param then: the phases that will follow, as in `phase`: what their retention methods need to know
        of this one is collected
    :param seed: of everything random; with `after`, that of the first phase
    :param hooks: plugins to use; default: all that are installed
    :param sink: gets each event, such as ``{"event": "step", "loss": …}``
    :raises ConfigError: a table is wrong
    :raises MgkError: training or merging failed; the model has its old weights
    """
    hooks = hooks or installed_hooks()
    session = (
        _begin(hooks, bundle, seed) if after is None else _continued(after, bundle)
    )
    index = len(session.config.phases)
    given = _named(hooks, session, phase, name)
    session.events = Events(sink)
    later = [_tables(hooks, p, index + n) for n, p in enumerate(then, 2)]
    with _added(session, given, later, data):
        check_loss(session, given, data)
        session.targets = targets_of(session)
        _score_new(session, index)
        if after is None:
            _base_statistics(session)
        outcome = PhaseRun(session, index).run()
    return _ended(session, index, outcome)


def _tables(
    hooks: Hooks, phase: PhaseConfig | Mapping[str, Any], number: int
) -> PhaseConfig:
    if isinstance(phase, PhaseConfig):
        return phase
    return phase_of(hooks, f"phase_{number}", phase)


def _named(
    hooks: Hooks,
    session: MemorySession,
    phase: PhaseConfig | Mapping[str, Any],
    name: str | None,
) -> PhaseConfig:
    """Read the phase's tables; its name must be new."""
    phases = session.config.phases
    given = _tables(hooks, phase, len(phases) + 1)
    if name is not None and not isinstance(phase, PhaseConfig):
        given = attrs.evolve(given, name=name)
    if any(p.name == given.name for p in phases):
        raise InputError(
            f"there is a phase {given.name!r} already; give this one another name"
        )
    return given


@contextmanager
def _added(
    session: MemorySession,
    phase: PhaseConfig,
    later: Sequence[PhaseConfig],
    data: PhaseData,
) -> Iterator[None]:
    """Give the session one phase more. After an error it is what it was; torch's random state is in any case."""
    before, rows, random = session.config, list(session.rows), rng_state(session.device)
    index = len(before.phases)
    session.config = attrs.evolve(before, phases=(*before.phases, phase, *later))
    session.data.append(_bound(data, phase.name))
    try:
        yield
    except BaseException:
        session.config, session.rows = before, rows
        session.data.pop()
        session.record(index).close()
        del session.records[index]
        raise
    finally:
        set_rng_state(random, session.device)
    session.record(index).close()
    session.config = attrs.evolve(before, phases=(*before.phases, phase))


def _continued(after: PhaseResult, bundle: Bundle) -> MemorySession:
    """Return the session of an earlier phase, if the model is what that phase left."""
    session = after._session  # noqa: SLF001 - its own class
    if bundle is not session.bundle or session.ledger.phases[-1] is not after.entry:
        raise InputError(
            f"phase {after.name!r} is not the last that ran on this model; give the last one's result"
        )
    return session


def _ended(session: MemorySession, index: int, outcome: Outcome) -> PhaseResult:
    """Add a phase to the matrix, the statistics and the ledger."""
    name, record = session.config.phases[index].name, session.records[index]
    assert record.entry is not None  # noqa: S101 - a phase that returns has committed
    kept = record.tensors.get(STATISTICS, {})
    if kept:
        session.statistics[name] = kept
    if outcome.result != "rolled_back":
        session.rows.append((name, record.row))
    session.ledger.phases.append(record.entry)
    return PhaseResult(
        name, outcome, record.entry, record.row, record.adapter, kept, session
    )


def phase_of(hooks: Hooks, name: str, tables: Mapping[str, Any]) -> PhaseConfig:
    """Read a phase's tables.

    :raises ConfigError: a table is wrong
    """
    unknown = [key for key in tables if key not in TABLES]
    problems = [Problem(key, f"unknown table{nearest(key, TABLES)}") for key in unknown]
    found: dict[str, Any] = {"name": name, "data": GIVEN}
    for slot in ONE:
        default = {"type": DEFAULTS[slot]} if slot in DEFAULTS else {}
        found[slot] = hooks.spec(slot, tables.get(slot, default))
    for slot in MANY:
        entries = tables.get(slot, {}).items()
        found[slot] = tuple(
            hooks.spec(slot, {"type": t, **keys}) for t, keys in entries
        )
    for key, cls in (("train", TrainSettings), ("evaluate", EvaluateSettings)):
        found[key] = read_table(Tree(), cls, tables.get(key, {}), (key,), problems)
    if problems:
        raise ConfigError(problems)
    return PhaseConfig(**found)


def _begin(hooks: Hooks, bundle: Bundle, seed: int) -> MemorySession:
    bundle.model.requires_grad_(False)
    weights = FrozenWeights(bundle.model, hooks.plugins)
    device = bundle.device
    return MemorySession(
        config=RunConfig(
            name="memory", base=GIVEN, phases=(), run=RunSettings(seed=seed)
        ),
        hooks=hooks,
        events=Events(),
        device=device,
        bundle=bundle,
        ledger=Ledger(weights.digest, {"type": "given"}, environment(device)),
        weights=weights,
    )


def _score_new(session: MemorySession, index: int) -> None:
    """Score the probes that the last row does not have, on the model before the phase."""
    name, row = session.rows.pop() if session.rows else ("base", {})
    ctx = session.context(index)
    ctx.probes = tuple(p for p in ctx.probes if p.name not in row)
    found = measure_row(session.hooks, ctx, ends=True)
    session.weights.check("the scores before the phase")
    session.rows.append((name, {**row, **found}))


def _base_statistics(session: MemorySession) -> None:
    found = base_statistics(session)
    session.weights.check("the base's statistics")
    if found:
        session.statistics["base"] = found


def _bound(data: PhaseData, phase: str) -> PhaseData:
    """Bind probes that name no phase to the phase whose data they came with."""
    probes = tuple(attrs.evolve(p, phase=p.phase or phase) for p in data.probes)
    return attrs.evolve(data, probes=probes)
