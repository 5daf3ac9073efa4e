"""Opening a session: plugins, configuration, device, model, data; for a new run or an old one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, fields, frozen

from mgk_core.config.render import as_table
from mgk_core.config.resolve import Resolved, load_tree, plugin_settings, resolve
from mgk_core.config.tree import Tree
from mgk_core.contract.adapter import Adapter, HasNotes
from mgk_core.contract.bundle import Bundle, PhaseData, SharesOut
from mgk_core.contract.errors import ConfigError, EnvironmentFault, InputError, Problem
from mgk_core.contract.settings import PhaseConfig, RunConfig
from mgk_core.contract.specs import LossSpec, Spec
from mgk_core.contract.world import ALONE, World
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.model.device import asked_threads, of_rank, pick_device, set_up
from mgk_core.model.speeds import threads_for
from mgk_core.record.checkpoint import seed_all
from mgk_core.record.events import Events
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import Ledger, environment
from mgk_core.record.run_directory import CONFIG
from mgk_core.record.store import Store
from mgk_core.run.attached import attached
from mgk_core.run.base_probe import measure_base
from mgk_core.run.frozen_weights import FrozenWeights
from mgk_core.run.identity import recorded_threads
from mgk_core.run.markup import restore_markup
from mgk_core.run.scores import check_probes, unmatched_limits
from mgk_core.run.session import PhaseSession, Session

PLACES = ("id", "path")
"""Keys under which a base's specification may name the directory that it is read from."""


@frozen
class Prepared:
    """A configuration and the plugins that understand it; nothing heavy has happened yet.

    base: where the base is now, if it was moved since the run began.
    """

    resolved: Resolved
    hooks: Hooks
    base: Path | None = None

    def build_base(self, device: torch.device) -> Bundle:
        """Build the base model from its current location.

        :raises InputError: it is not there; the message explains how to give its new location
        """
        spec = self.resolved.config.base
        if self.base is not None:
            return self.hooks.build_model(_moved(spec, self.base), device)
        try:
            return self.hooks.build_model(spec, device)
        except InputError as error:
            if not _has_vanished(spec):
                raise
            raise InputError(
                f"{error}; if the base was moved, add --base DIR"
            ) from error


def prepare(tree: Tree, without: Iterable[str] = ()) -> Prepared:
    """Load plugins as the tree asks and resolve it.

    :raises PluginError: a plugin that acts in every run failed to load and was not left out
    :raises ConfigError: every problem of the configuration
    """
    settings = plugin_settings(tree)
    plugins = load_plugins(
        without=(*settings.without, *without), prefer=settings.prefer
    )
    plugins.require_usable()
    return Prepared(resolve(tree, plugins.registry), Hooks(plugins))


def prepare_run(
    run: Path, without: Iterable[str] = (), base: Path | None = None
) -> Prepared:
    """Resolve a run's own run.toml. base: the directory to which its base was moved."""
    return evolve(prepare(load_tree(file=run / CONFIG), without), base=base)


def _moved(spec: Spec, base: Path) -> Spec:
    """Return a base's specification with another directory; a revision does not apply to one.

    :raises InputError: bases of this type are not read from a directory, or it is not one
    """
    if not base.is_dir():
        raise InputError(
            f"--base {base}: no such directory; expected the base of this run"
        )
    keys = {field.name for field in fields(type(spec))}
    place = next((key for key in PLACES if key in keys), None)
    if place is None:
        raise InputError(
            f"--base {base}: a base of type {spec.type!r} is built, not read from a directory;"
            " leave --base out"
        )
    changes: dict[str, Any] = {place: str(base)}
    if "revision" in keys:
        changes["revision"] = None
    return evolve(spec, **changes)


def _has_vanished(spec: Spec) -> bool:
    """Return whether a base's specification names a path that does not exist."""
    places = [str(getattr(spec, key)) for key in PLACES if getattr(spec, key, None)]
    return any(not Path(place).exists() for place in places)


def frozen_base(
    prepared: Prepared, device: torch.device
) -> tuple[Bundle, FrozenWeights]:
    """Build the base in evaluation mode, without gradients, and take its digest."""
    bundle = prepared.build_base(device)
    bundle.model.requires_grad_(False)
    bundle.model.eval()
    return bundle, FrozenWeights(bundle.model, prepared.hooks.plugins)


def fit_threads(
    config: RunConfig,
    bundle: Bundle,
    device: torch.device,
    recorded: int,
    world: World = ALONE,
) -> None:
    """Set the threads of a run that nobody has set: those that it started with, or as many as its base needs.

    recorded: by the run's journal; 0 where it has not started. Every process loads the base with all
    threads, so that a resumed run has the same one.
    """
    if config.run.threads or asked_threads() or device.type != "cpu":
        return
    torch.set_num_threads(recorded or world.same(threads_for(bundle.model)))


def open_session(
    prepared: Prepared, store: Store, journal: Journal, events: Events
) -> Session:
    """Build the model and read all data; nothing is written but the metrics."""
    config = prepared.resolved.config
    _check_installed(config)
    world = store.world
    device = of_rank(pick_device(config.run.device), world)
    set_up(device, threads=config.run.threads, deterministic=config.run.deterministic)
    seed_all(config.run.seed)
    events("load", what="base", type=config.base.type, device=str(device))
    bundle, weights = frozen_base(prepared, device)
    world.agree("the base", weights.digest)
    fit_threads(config, bundle, device, recorded_threads(journal), world)
    if isinstance(bundle, SharesOut):
        bundle.world = world
    restore_markup(bundle, store)
    ledger = Ledger(
        base=weights.digest,
        base_spec=as_table(config)["base"],
        environment=environment(device),
        preparation=dict(getattr(bundle, "preparation", {})),
    )
    for warning in prepared.hooks.plugins.warnings():
        events("note", phase="plugins", text=warning)
    for note in prepared.resolved.notes:
        events("note", phase="configuration", text=note)
    for note in getattr(bundle, "notes", ()):
        events("note", phase="base", text=note)
    session = Session(
        config=config,
        hooks=prepared.hooks,
        store=store,
        journal=journal,
        events=events,
        device=device,
        bundle=bundle,
        ledger=ledger,
        weights=weights,
        world=world,
    )
    for phase in config.phases:
        events("load", what="data", phase=phase.name, type=phase.data.type)
        session.data.append(
            _bound(
                prepared.hooks.load_data(phase.data, bundle, _others(config, phase)),
                phase.name,
            )
        )
        for note in session.data[-1].notes:
            events("note", phase=phase.name, text=note)
    for name, spec in config.probes.items():
        events("load", what="probe", phase=spec.phase, type=spec.type)
        session.own_probes += prepared.hooks.load_probes(spec, name, bundle)
    measure_base(session)
    _check_dev(session)
    _check_losses(session)
    check_probes(session.probes, [p.name for p in config.phases])
    for name, glob in unmatched_limits(session.probes, config.phases):
        events(
            "note",
            phase=name,
            text=f"evaluate.limits: no probe is called {glob!r}, so this limit does nothing",
        )
    session.targets = targets_of(session)
    return session


def _check_installed(config: RunConfig) -> None:
    """Refuse before the base is loaded what needs a library that is not installed.

    :raises EnvironmentFault: names every one of them
    """
    specs = [config.base, *(spec for phase in config.phases for spec in phase.specs)]
    missing = [text for text in dict.fromkeys(spec.missing() for spec in specs) if text]
    if missing:
        raise EnvironmentFault("; ".join(missing))


def _others(config: RunConfig, phase: PhaseConfig) -> tuple[Spec, ...]:
    """Return where else a pipeline holds rows out: its other phases' data, and its own probes."""
    data = (other.data for other in config.phases if other is not phase)
    return (*data, *config.probes.values())


def _check_dev(session: Session) -> None:
    """Refuse settings that need dev data where a phase has none; they would have no effect.

    :raises ConfigError: names every such key, and what to do
    """
    problems = []
    for phase, data in zip(session.config.phases, session.data, strict=True):
        train = phase.train
        if data.dev or train.eval_every is None:
            continue
        key = "keep" if train.keep == "best" else "eval_every"
        key = key if train.patience is None else "patience"
        where = f"phases.{phase.name}.train.{key}"
        hint = f"set phases.{phase.name}.data.dev or remove the key"
        if hasattr(phase.data, "dev_share"):
            hint = (
                f"set phases.{phase.name}.data.dev to a file, or phases.{phase.name}.data.dev_share"
                " = 0.1 to hold out a tenth of train, or remove the key"
            )
        problems.append(
            Problem(where, f"needs dev data, and this phase has none; {hint}")
        )
    if problems:
        raise ConfigError(problems)


def _check_losses(session: Session) -> None:
    """Let each phase's loss check that it can use the phase's data on this base.

    :raises ConfigError: names every phase whose loss cannot
    """
    problems = []
    for phase, data in zip(session.config.phases, session.data, strict=True):
        try:
            check_loss(session, phase, data)
        except InputError as error:
            problems.append(Problem(f"phases.{phase.name}.loss", str(error)))
    if problems:
        raise ConfigError(problems)


def check_loss(session: PhaseSession, phase: PhaseConfig, data: PhaseData) -> None:
    """Let a phase's loss check its data and the base; report its notes.

    :raises InputError: the loss cannot use them
    """
    if isinstance(phase.loss, LossSpec):
        for note in phase.loss.check(data, session.bundle):
            session.events("note", phase=phase.name, text=note)


def _bound(data: PhaseData, phase: str) -> PhaseData:
    """Bind probes that name no phase to the phase whose data they came with."""
    return evolve(
        data, probes=tuple(evolve(p, phase=p.phase or phase) for p in data.probes)
    )


def targets_of(session: PhaseSession) -> tuple[str, ...]:
    """Return the weights that any phase will adapt, where a retention method may ask for them.

    These are known only after attaching, so each distinct adapter is attached once and detached; one
    that does not fit the model is an error now, not hours later. So is an optimizer whose library is
    missing, or whose parameter groups match nothing of the adapter.
    """
    model, config = session.bundle.model, session.config
    names: dict[str, None] = {}
    problems: list[Problem] = []
    alike: dict[str, list[PhaseConfig]] = {}
    for phase in config.phases:
        alike.setdefault(repr(phase.adapter), []).append(phase)
    for phases in alike.values():
        first = phases[0]
        try:
            with attached(session.hooks, model, first.adapter, "targets") as adapter:
                names |= dict.fromkeys(adapter.targets())
                for note in adapter.notes if isinstance(adapter, HasNotes) else ():
                    session.events("note", phase=first.name, text=note)
                problems += _optimizer_problems(session, phases, adapter)
        except InputError as error:
            problems.append(Problem(f"phases.{first.name}.adapter", str(error)))
    if problems:
        raise ConfigError(problems)
    return tuple(names) if any(p.retention or p.recover for p in config.phases) else ()


def _optimizer_problems(
    session: PhaseSession, phases: Sequence[PhaseConfig], adapter: Adapter
) -> Iterator[Problem]:
    """Make each distinct optimizer of phases with this adapter, and yield why one cannot be made."""
    distinct = {repr(p.optimizer): p for p in reversed(phases)}
    for phase in reversed(distinct.values()):
        try:
            session.hooks.make_optimizer(adapter, phase.optimizer)
        except InputError as error:
            yield Problem(f"phases.{phase.name}.optimizer", str(error))
