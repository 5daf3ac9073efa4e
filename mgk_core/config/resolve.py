"""From declarations, files and overrides to one resolved configuration.

Order, the later winning: pipeline, ``extends`` chain, file, ``--set``, flags. Every problem is
found and reported at once, with file, line and key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import evolve, frozen

from mgk_core.config.catalog import find_phase, find_pipeline
from mgk_core.config.repeated import merged
from mgk_core.config.structure import read_table
from mgk_core.config.tree import Source, Tree, parse_set, read_toml
from mgk_core.config.unused import unused_defaults
from mgk_core.contract.errors import ConfigError, InputError, Problem, closest, nearest
from mgk_core.contract.pipeline import NAME, Phase, Pipeline, check_name, order
from mgk_core.contract.settings import (
    MANY,
    ONE,
    EvaluateSettings,
    PhaseConfig,
    PluginSettings,
    RunConfig,
    RunSettings,
    TrainSettings,
)
from mgk_core.contract.specs import ProbeSpec, Slot, Spec, SpecRegistry

_TOP = (
    "name", "title", "extends", "base", "defaults", "phases", "probes", "run", "plugins",
)  # fmt: skip
_PHASE_KEYS = tuple(a.name for a in attrs.fields(Phase) if a.name != "name")
_DEFAULT_TYPES: dict[Slot, str] = {
    "step": "standard",
    "merge": "exact",
    "loss": "likelihood",
}
_RECOGNISED: dict[Slot, str] = {"data": "auto"}  # the type of a table that names none


@frozen
class Resolved:
    """The resolved configuration, where each value came from, and notes on what has no effect."""

    config: RunConfig
    tree: Tree
    notes: tuple[str, ...] = ()


def load_tree(
    pipeline: str | Pipeline | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    flags: Mapping[str, Any] | None = None,
) -> Tree:
    """Lay all sources over each other; nothing is checked yet but the form of each source.

    pipeline: an installed one, its name, or a TOML file in place of ``file``.
    """
    tree = Tree()
    if isinstance(pipeline, str) and pipeline.endswith(".toml"):
        if file is not None:
            raise InputError(
                f"two configuration files, {pipeline} and {file}; let one extend the other"
            )
        pipeline, file = None, pipeline
    table, text = read_toml(Path(file)) if file is not None else ({}, "")
    if pipeline is None and "extends" not in table and file is None:
        raise InputError(
            "expected a pipeline or a configuration file; see 'mgk pipelines'"
        )
    if pipeline is not None:
        _overlay_pipeline(
            tree, find_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
        )
    if file is not None:
        _overlay_file(tree, Path(file), table, text, seen=(), extend=pipeline is None)
    _overlay_sets(tree, overrides)
    for key, value in (flags or {}).items():
        if value is not None:
            tree.overlay({"run": {key: value}}, Source(f"--{key.replace('_', '-')}"))
    return tree


def _overlay_sets(tree: Tree, overrides: Sequence[str] | Mapping[str, Any]) -> None:
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            table: Any = value
            for part in reversed(key.split(".")):
                table = {part: table}
            tree.overlay(table, Source("--set"))
        return
    for text in overrides:
        tree.overlay(parse_set(text), Source("--set"))


def _overlay_pipeline(tree: Tree, pipeline: Pipeline) -> None:
    source = Source(f"pipeline {pipeline.name}")
    phases = {p.name: _phase_table(p) for p in pipeline.phases}
    tree.overlay(
        {"name": pipeline.name, "title": pipeline.title, "base": pipeline.base}, source
    )
    tree.overlay(
        {"defaults": pipeline.defaults, "run": pipeline.run, "phases": phases}, source
    )
    if pipeline.probes:
        tree.overlay({"probes": pipeline.probes}, source)


def _phase_table(phase: Phase) -> dict[str, Any]:
    table = {k: getattr(phase, k) for k in _PHASE_KEYS}
    return {k: v for k, v in table.items() if v not in (None, "", {})}


def _overlay_file(
    tree: Tree,
    path: Path,
    table: Mapping[str, Any],
    text: str,
    seen: tuple[Path, ...],
    *,
    extend: bool,
) -> None:
    """Lay a file over the tree, what it extends first."""
    real = path.resolve()
    if real in seen:
        raise ConfigError(
            [
                Problem(
                    "extends",
                    f"files extend each other in a circle: {path}; remove one of the extends",
                    str(path),
                )
            ]
        )
    parent = table.get("extends")
    if parent is not None and extend:
        if not isinstance(parent, str):
            raise ConfigError(
                [Problem("extends", "expected a pipeline's name or a file", str(path))]
            )
        below = path.parent / parent
        if parent.endswith(".toml") or below.is_file():
            inner, inner_text = read_toml(below)
            _overlay_file(tree, below, inner, inner_text, (*seen, real), extend=True)
        else:
            _overlay_pipeline(tree, find_pipeline(parent))
    tree.overlay(table, Source("file", str(path)), text)
    tree.sources[()] = Source(
        "file", str(path)
    )  # where what is missing would have to be


def resolve(tree: Tree, registry: SpecRegistry) -> Resolved:
    """Check the tree against what the plugins know; all problems at once in one `ConfigError`."""
    problems: list[Problem] = []
    values = tree.values
    _check_keys(tree, values, _TOP, (), problems)
    texts = ("name", "title")
    problems += [
        tree.problem((k,), "expected a string")
        for k in texts
        if not isinstance(values.get(k, ""), str)
    ]
    base = _spec(tree, registry, "base", values.get("base"), ("base",), problems)
    phases = _phases(tree, registry, problems)
    probes = _probes(tree, registry, problems)
    run = read_table(tree, RunSettings, values.get("run", {}), ("run",), problems)
    plugins = read_table(
        tree, PluginSettings, values.get("plugins", {}), ("plugins",), problems
    )
    if run is not None:
        phases = _tracked(tree, registry, phases, run.track, problems)
    if not problems and not phases:
        problems.append(Problem("phases", "expected at least one phase"))
    if problems or base is None or run is None or plugins is None:
        raise ConfigError(merged(problems, values))
    name = str(values.get("name", "run"))
    check_name(name, "pipeline name")
    config = RunConfig(
        name=name,
        title=str(values.get("title", "")),
        base=base,
        phases=tuple(phases),
        run=run,
        plugins=plugins,
        probes=probes,
    )
    return Resolved(config, tree, tuple(unused_defaults(tree)))


def _tracked(
    tree: Tree,
    registry: SpecRegistry,
    phases: list[PhaseConfig],
    names: Iterable[str],
    problems: list[Problem],
) -> list[PhaseConfig]:
    """Add the observers of ``run.track`` to each phase that does not set their options itself."""
    path = ("run", "track")
    added = [
        _spec(tree, registry, "observe", {"type": n}, path, problems) for n in names
    ]
    found = []
    for phase in phases:
        own = {spec.type for spec in phase.observe}
        new = [spec for spec in added if spec is not None and spec.type not in own]
        found.append(evolve(phase, observe=(*phase.observe, *new)))
    return found


def plugin_settings(tree: Tree) -> PluginSettings:
    """Read the ``plugins`` table alone: needed before the plugins, and so the registry, exist."""
    problems: list[Problem] = []
    found = read_table(
        tree, PluginSettings, tree.values.get("plugins", {}), ("plugins",), problems
    )
    if found is None:
        raise ConfigError(problems)
    return found


def _phases(
    tree: Tree, registry: SpecRegistry, problems: list[Problem]
) -> list[PhaseConfig]:
    tables = tree.values.get("phases", {})
    defaults = tree.values.get("defaults", {})
    if not isinstance(tables, dict) or not isinstance(defaults, dict):
        problems.append(tree.problem(("phases",), "expected tables: [phases.NAME]"))
        return []
    _check_keys(tree, defaults, _PHASE_KEYS, ("defaults",), problems)
    ordered = _ordered(tree, tables, problems)
    tree.values["phases"] = {name: tables[name] for name in ordered}
    result = []
    for name in ordered:
        found = _phase(tree, registry, name, tables[name], defaults, problems)
        if found is not None:
            result.append(found)
    return result


def _ordered(tree: Tree, tables: dict[str, Any], problems: list[Problem]) -> list[str]:
    """Return the phases' names in their order; ``use`` brings in installed phases."""
    declared = []
    for name, table in list(tables.items()):
        if table is False:
            if ("phases", name) not in tree.tables:
                others = (n for n in tables if n != name)
                problems.append(
                    tree.problem(
                        ("phases", name),
                        f"no such phase to leave out{nearest(name, others)}",
                    )
                )
            continue
        if not isinstance(table, dict):
            problems.append(
                tree.problem(
                    ("phases", name),
                    "expected a table, or false to leave the phase out",
                )
            )
            continue
        try:
            whole = _bring_in(tree, tables, name, table)
            declared.append(
                Phase(
                    name, after=_place(whole, "after"), before=_place(whole, "before")
                )
            )
        except InputError as error:
            problems.append(tree.problem(("phases", name), str(error)))
    try:
        return [p.name for p in order(declared)]
    except InputError as error:
        problems.append(tree.problem(("phases",), str(error)))
        return []


def _place(table: Mapping[str, Any], key: str) -> str | None:
    """Return the phase that ``after`` or ``before`` names."""
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key}: expected a phase's name, got {value!r:.60}")
    return value


def _bring_in(
    tree: Tree, tables: dict[str, Any], name: str, table: dict[str, Any]
) -> dict[str, Any]:
    """Lay a table over the installed phase that its ``use`` names; return the whole."""
    wanted = table.pop("use", None)
    if wanted is None:
        return table
    below = Tree()
    below.overlay(_phase_table(find_phase(str(wanted))), Source(f"phase {wanted}"))
    for path, source in below.sources.items():
        tree.sources.setdefault(("phases", name, *path), source)
    below.overlay(table, Source("file"))
    tables[name] = below.values
    return below.values


def _phase(
    tree: Tree,
    registry: SpecRegistry,
    name: str,
    table: dict[str, Any],
    defaults: dict[str, Any],
    problems: list[Problem],
) -> PhaseConfig | None:
    path = ("phases", name)
    tree.copy_sources(("defaults",), path)
    whole = Tree()
    whole.overlay(defaults, Source("defaults"))
    whole.overlay(table, Source("phase"))
    values = whole.values
    if (meant := _meant(tree, name, values)) is not None:
        message = f"no phase of this name is declared; did you mean {meant!r}? (a new one needs data.train)"
        problems.append(tree.problem(path, message))
        return None
    _check_keys(tree, values, _PHASE_KEYS, path, problems)
    made: dict[str, Any] = {}
    for slot in ONE:
        place = (*path, slot)
        made[slot] = _spec(tree, registry, slot, values.get(slot), place, problems)
    for slot in MANY:
        place = (*path, slot)
        made[slot] = _many(tree, registry, slot, values.get(slot, {}), place, problems)
    train = read_table(
        tree, TrainSettings, values.get("train", {}), (*path, "train"), problems
    )
    evaluate = values.get("evaluate", {})
    made["evaluate"] = read_table(
        tree, EvaluateSettings, evaluate, (*path, "evaluate"), problems
    )
    made["train"] = train
    if train is not None and (train.micro_batch or 0) > train.batch_size:
        at_most = "expected at most train.batch_size"
        problems.append(tree.problem((*path, "train", "micro_batch"), at_most))
    if any(v is None for v in made.values()):
        return None
    return PhaseConfig(name=name, title=str(values.get("title", "")), **made)


def _meant(tree: Tree, name: str, values: Mapping[str, Any]) -> str | None:
    """Return the phase that a table without any data is a misspelt name of."""
    if not isinstance(values.get("data", {}), Mapping) or _says_type(values):
        return None
    phases: Mapping[str, Any] = tree.values["phases"]
    others = (
        other
        for other, table in phases.items()
        if other != name and isinstance(table, dict) and _says_type(table)
    )
    return closest(name, others)


def _says_type(phase: Mapping[str, Any]) -> bool:
    """Whether a phase's table has the type of its data, as every phase of its own must."""
    data = phase.get("data")
    return isinstance(data, Mapping) and bool({"type", "train"} & set(data))


def _check_keys(
    tree: Tree,
    table: Mapping[str, Any],
    known: Sequence[str],
    path: tuple[str, ...],
    problems: list[Problem],
) -> None:
    for key in (k for k in table if k not in known):
        phases_own = not path and key in _PHASE_KEYS
        hint = (
            f"; did you mean 'defaults.{key}', or one phase's?"
            if phases_own
            else nearest(key, known)
        )
        problems.append(tree.problem((*path, key), f"unknown key{hint}"))


def _probes(
    tree: Tree, registry: SpecRegistry, problems: list[Problem]
) -> dict[str, ProbeSpec]:
    """Read the table ``probes``: name → a table with a type."""
    tables = tree.values.get("probes", {})
    if not isinstance(tables, Mapping):
        problems.append(tree.problem(("probes",), "expected tables: [probes.NAME]"))
        return {}
    given = tree.values.get("phases", {})
    found = given.items() if isinstance(given, Mapping) else ()
    phases = [name for name, table in found if table is not False]
    made: dict[str, ProbeSpec] = {}
    for name, table in tables.items():
        path = ("probes", name)
        if table is False:
            if path not in tree.tables:
                hint = nearest(name, (n for n in tables if n != name))
                problems.append(tree.problem(path, f"no such probe to leave out{hint}"))
            continue
        if not NAME.fullmatch(name):
            problems.append(
                tree.problem(path, "expected a name of letters, digits, '_' and '-'")
            )
            continue
        spec = _spec(tree, registry, "probe", table, path, problems)
        if not isinstance(spec, ProbeSpec):
            continue
        if spec.phase not in ("base", *phases):
            problems.append(
                tree.problem(
                    (*path, "phase"),
                    f"expected base or one of {', '.join(phases)}, got {spec.phase!r}"
                    f"{nearest(spec.phase, ('base', *phases))}",
                )
            )
        made[name] = spec
    return made


def _many(
    tree: Tree,
    registry: SpecRegistry,
    slot: Slot,
    table: Any,
    path: tuple[str, ...],
    problems: list[Problem],
) -> tuple[Spec, ...] | None:
    if not isinstance(table, Mapping):
        problems.append(tree.problem(path, f"expected tables: [{'.'.join(path)}.TYPE]"))
        return None
    made = []
    for key, value in table.items():
        if value is False:
            if not (
                key in registry.types(slot)
                or {(*path, key), ("defaults", slot, key)} & tree.tables
            ):
                hint = nearest(key, registry.types(slot))
                problems.append(
                    tree.problem(
                        (*path, key), f"there is no such {slot} to leave out{hint}"
                    )
                )
            continue
        entry = {} if value is True else value
        found = _spec(tree, registry, slot, entry, (*path, key), problems, default=key)
        if found is None:
            continue
        made.append(found)
        if (
            slot == "recover"
        ):  # methods that a recovery would add are checked now, not when it is needed
            _many(
                tree,
                registry,
                "retention",
                getattr(found, "retention", {}),
                (*path, key, "retention"),
                problems,
            )
    return tuple(made)


def _spec(
    tree: Tree,
    registry: SpecRegistry,
    slot: Slot,
    table: Any,
    path: tuple[str, ...],
    problems: list[Problem],
    default: str | None = None,
) -> Spec | None:
    """Read one slot's table with the class that its type's plugin registered."""
    default = default or _DEFAULT_TYPES.get(slot)
    if table is None and default is not None:
        table = {}
    if not isinstance(table, Mapping):
        message = (
            "missing: expected a table with a type"
            if table is None
            else "expected a table"
        )
        problems.append(tree.problem(path, message))
        return None
    type_ = table.get("type", default or _RECOGNISED.get(slot))
    if not isinstance(type_, str):
        problems.append(
            tree.problem(
                (*path, "type"), f"missing; known: {', '.join(registry.types(slot))}"
            )
        )
        return None
    try:
        claim = registry.find(slot, type_)
    except InputError as error:
        problems.append(tree.problem((*path, "type"), str(error)))
        return None
    found = read_table(tree, claim.cls, {**table, "type": type_}, path, problems)
    inner = getattr(found, "adapters", {}) if slot == "adapter" else {}
    for name, own in inner.items():  # several adapters in one: each is checked now
        _spec(tree, registry, slot, own, (*path, "adapters", name), problems)
    return found


def structure_spec(
    registry: SpecRegistry, slot: Slot, table: Mapping[str, Any]
) -> Spec:
    """Read one table given in Python; `ConfigError` with every problem."""
    problems: list[Problem] = []
    spec = _spec(Tree(), registry, slot, table, (slot,), problems)
    if spec is None or problems:
        raise ConfigError(problems)
    return spec
