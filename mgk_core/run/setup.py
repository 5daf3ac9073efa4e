"""Opening a session: plugins, configuration, device, model, data; for a new run or an old one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from attrs import evolve, frozen

from mgk_core.config.render import as_table
from mgk_core.config.resolve import Resolved, load_tree, plugin_settings, resolve
from mgk_core.config.tree import Tree
from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.errors import ConfigError, InputError, Problem
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.model.device import pick_device, set_up
from mgk_core.record.checkpoint import seed_all
from mgk_core.record.events import Events
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import Ledger, environment
from mgk_core.record.store import Store
from mgk_core.run.attached import attached
from mgk_core.run.frozen_weights import FrozenWeights
from mgk_core.run.scores import check_probes, unmatched_limits
from mgk_core.run.session import Session


@frozen
class Prepared:
    """A configuration and the plugins that understand it; nothing heavy has happened yet."""

    resolved: Resolved
    hooks: Hooks


def prepare(tree: Tree, without: Iterable[str] = ()) -> Prepared:
    """Load plugins as the tree asks and resolve it.

    :raises PluginError: an installed plugin is broken and was not left out
    :raises ConfigError: every problem of the configuration
    """
    settings = plugin_settings(tree)
    plugins = load_plugins(without=(*settings.without, *without), prefer=settings.prefer)
    plugins.require_whole()
    return Prepared(resolve(tree, plugins.registry), Hooks(plugins))


def prepare_run(run: Path, without: Iterable[str] = ()) -> Prepared:
    """Resolve a run's own run.toml."""
    return prepare(load_tree(file=run / "run.toml"), without)


def open_session(prepared: Prepared, store: Store, journal: Journal, events: Events) -> Session:
    """Build the model and read all data; nothing is written but the metrics."""
    config = prepared.resolved.config
    device = pick_device(config.run.device)
    set_up(device, threads=config.run.threads, deterministic=config.run.deterministic)
    seed_all(config.run.seed)
    events("load", what="base", type=config.base.type, device=str(device))
    bundle = prepared.hooks.build_model(config.base, device)
    bundle.model.requires_grad_(False)
    bundle.model.eval()
    weights = FrozenWeights(bundle.model, prepared.hooks.plugins, lambda: events.observers)
    ledger = Ledger(
        base=weights.digest,
        base_spec=as_table(config)["base"],
        environment=environment(device),
        preparation=dict(getattr(bundle, "preparation", {})),
    )
    for note in getattr(bundle, "notes", ()):
        events("note", phase="base", text=note)
    session = Session(
        prepared.resolved, prepared.hooks, store, journal, events, device, bundle, ledger, weights
    )
    for phase in config.phases:
        events("load", what="data", phase=phase.name, type=phase.data.type)
        session.data.append(_bound(prepared.hooks.load_data(phase.data, bundle), phase.name))
        for note in session.data[-1].notes:
            events("note", phase=phase.name, text=note)
    check_probes(session.probes, [p.name for p in config.phases])
    for name, glob in unmatched_limits(session.probes, config.phases):
        events(
            "note",
            phase=name,
            text=f"evaluate.limits: no probe is called {glob!r}, so this limit does nothing",
        )
    session.targets = _targets(session)
    return session


def _bound(data: PhaseData, phase: str) -> PhaseData:
    """Bind probes that name no phase to the phase whose data they came with."""
    return evolve(data, probes=tuple(evolve(p, phase=p.phase or phase) for p in data.probes))


def _targets(session: Session) -> tuple[str, ...]:
    """Return the weights that any phase will adapt, where a retention method may ask for them.

    Only attaching tells, so each distinct adapter is attached once and taken off again; one that
    does not fit the model is an error now, not hours later.
    """
    model, config = session.bundle.model, session.config
    names: dict[str, None] = {}
    problems: list[Problem] = []
    distinct = {
        repr(p.adapter): p for p in reversed(config.phases)
    }  # the first phase of each kind stands for it
    for phase in reversed(distinct.values()):
        try:
            with attached(session.hooks, model, phase.adapter, "targets") as adapter:
                names |= dict.fromkeys(adapter.targets())
        except InputError as error:
            problems.append(Problem(f"phases.{phase.name}.adapter", str(error)))
    if problems:
        raise ConfigError(problems)
    return tuple(names) if any(p.retention or p.recover for p in config.phases) else ()
