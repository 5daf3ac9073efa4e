"""The library without the pipeline: attach, merge, roll back; and a whole run from Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mgk_core.contract.adapter import Adapter, retie, state_of
from mgk_core.contract.bundle import Bundle, PhaseData
from mgk_core.contract.errors import InputError, MergeError
from mgk_core.contract.outcome import MergeReport, Proposal
from mgk_core.contract.specs import Spec
from mgk_core.host.hooks import Hooks, installed_hooks
from mgk_core.model.device import pick_device
from mgk_core.record.events import Sink, ignore
from mgk_core.run.attached import attach_seeded, take_off

if TYPE_CHECKING:
    from mgk_core.contract.pipeline import Pipeline
    from mgk_core.contract.settings import RunConfig
    from mgk_core.run.runner import RunResult


def attach(
    model: nn.Module,
    type: str = "lora",  # noqa: A002 - the key of the configuration
    *,
    name: str = "adapter",
    seed: int = 0,
    **options: Any,
) -> Adapter:
    """Freeze ``model`` and attach an adapter to it.

    :param type: an adapter type of any installed plugin (``lora``, ``peft:IA3`` …)
    :param name: several adapters may be attached under different names; all are active
    :param seed: of the adapter's random initialisation; torch's own state is left as it was
    :param options: the keys of that type, as in a pipeline's ``adapter`` table
    :raises ConfigError: for an unknown key or a value out of range, all of them at once
    """
    hooks = installed_hooks()
    spec = hooks.spec("adapter", {"type": type, **options})
    return attach_spec(hooks, model, spec, name, seed)


def attach_spec(
    hooks: Hooks, model: nn.Module, spec: Spec, name: str, seed: int = 0
) -> Adapter:
    """Do what `attach` does, with plugins and a specification that are at hand already."""
    if any(a.name == name for a in state_of(model).adapters):
        raise InputError(
            f"an adapter named {name!r} is attached already; give the new one another name"
        )
    keep = {id(p) for a in state_of(model).adapters for p in a.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in keep:
            parameter.requires_grad_(False)
    return attach_seeded(hooks, model, spec, name, seed)


def detach(model: nn.Module, adapter: Adapter) -> None:
    """Take an adapter off without merging it; the base is bit-identical to what it was."""
    if adapter not in state_of(model).adapters:
        raise InputError(f"adapter {adapter.name!r} is not attached to this model")
    take_off(installed_hooks(), model, adapter)


def merge(
    model: nn.Module,
    adapter: Adapter,
    *,
    rule: str = "exact",
    scale: float = 1.0,
    undo: str = "memory",
    **options: Any,
) -> MergeReport:
    """Fold an adapter into the base and take it off. All or nothing.

    :param rule: a merge rule of any installed plugin; ``options`` are its keys
    :param undo: where the old weights are kept for `rollback`: ``memory`` or ``disk``
    :raises MergeError: the merge was refused (NaN, inf, nothing to merge, merged already); the
        model is bit-identical to before and the adapter still attached
    """
    hooks = installed_hooks()
    if adapter not in state_of(model).adapters:
        raise MergeError(
            f"adapter {adapter.name!r} is not attached to this model (merged or detached already?)"
        )
    spec = hooks.spec("merge", {"type": rule, **options})
    if undo not in ("memory", "disk"):
        raise InputError(f"undo: expected 'memory' or 'disk', got {undo!r}")
    if not math.isfinite(scale):
        raise InputError(f"scale: expected a finite number, got {scale}")
    proposal = Proposal(scale=scale, undo="disk" if undo == "disk" else "memory")
    report = hooks.merge(model, adapter, proposal, spec)
    detach(model, adapter)
    return report


def rollback(model: nn.Module, report: MergeReport) -> None:
    """Undo a merge: the base of before, bit for bit. The adapter stays off."""
    if report.undo is None:
        raise MergeError(f"the merge of {report.adapter!r} kept nothing to go back to")
    report.undo.restore()
    if not state_of(model).adapters:
        retie(state_of(model))


def load_base(type: str, *, device: str = "auto", **options: Any) -> Bundle:  # noqa: A002
    """Build or load a base model, as a pipeline's ``base`` table does.

    :param type: a base type of any installed plugin, such as ``hf``; ``options`` are its keys
    :raises ConfigError: for an unknown key or a value out of range
    """
    hooks = installed_hooks()
    spec = hooks.spec("base", {"type": type, **options})
    return hooks.build_model(spec, pick_device(device))


def load_data(bundle: Bundle, type: str, **options: Any) -> PhaseData:  # noqa: A002
    """Read a phase's data and probes, as a pipeline's ``data`` table does.

    :param type: a data type of any installed plugin, such as ``text``; ``options`` are its keys
    :raises DataError: with every bad row
    """
    hooks = installed_hooks()
    return hooks.load_data(hooks.spec("data", {"type": type, **options}), bundle)


def pipeline(name: str) -> Pipeline:
    """Return an installed pipeline by name."""
    from mgk_core.config.catalog import find_pipeline

    return find_pipeline(name)


def resolve(
    pipeline: str | Pipeline | None = None,
    *,
    config: str | Path | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),  # noqa: A002 - the command line's word
) -> RunConfig:
    """Return the configuration that `run` would use, every value filled in; no model is loaded.

    :param config: a configuration file, on its own or on top of ``pipeline``
    :param set: ``"key=value"`` strings, or a mapping of dotted keys to values
    :raises ConfigError: every problem at once, with file, line and key
    """
    from mgk_core.config.resolve import load_tree, plugin_settings
    from mgk_core.config.resolve import resolve as resolve_tree
    from mgk_core.host.manager import load_plugins

    tree = load_tree(pipeline, config, set)
    chosen = plugin_settings(tree)
    plugins = load_plugins(without=chosen.without, prefer=chosen.prefer)
    return resolve_tree(tree, plugins.registry).config


def run(
    pipeline: str | Pipeline,
    *,
    out: str | Path,
    config: str | Path | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),  # noqa: A002 - the command line's word
    until: str | None = None,
    sink: Sink = ignore,
) -> RunResult:
    """Run a pipeline, as ``mgk run`` does.

    :param pipeline: an installed pipeline's name, or a `Pipeline`
    :param set: ``"key=value"`` strings, or a mapping of dotted keys to values
    :param sink: gets each event, such as ``{"event": "step", "loss": …}``
    """
    from mgk_core.run.runner import run_pipeline

    return run_pipeline(
        pipeline, out=Path(out), config=config, overrides=set, until=until, sink=sink
    )
