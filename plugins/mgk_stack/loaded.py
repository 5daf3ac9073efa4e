"""An adapter from its files: of an earlier run of mgk, or of PEFT."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.errors import InputError
from mgk_core.contract.files import read_tensors
from mgk_core.contract.peers import peers
from mgk_stack.spec import LoadedSpec

STATE, PEFT = "state.safetensors", "adapter_config.json"


@runtime_checkable
class Rescales(Protocol):
    """An adapter whose deltas can be multiplied by a number."""

    def rescale(self, weight: float) -> None:
        """Multiply every delta by ``weight``."""


def attach_loaded(model: nn.Module, spec: LoadedSpec, name: str) -> Adapter:
    """Attach the adapter of a directory, with its trained numbers.

    :raises InputError: the directory holds no adapter, or one that does not fit this base
    """
    directory = _directory(Path(spec.path).expanduser())
    others = peers()
    if (directory / STATE).is_file():
        table = _table(directory)
        adapter = others.attach_adapter(model, others.spec("adapter", table), name)
        _load(adapter, directory)
    else:
        table = {"type": "lora-directory", "path": str(directory)}
        adapter = others.attach_adapter(model, others.spec("adapter", table), name)
    try:
        _rescale(adapter, spec)
    except BaseException:
        adapter.detach()
        raise
    for parameter in adapter.parameters():
        parameter.requires_grad_(spec.train)
    adapter.identity = "none"
    return adapter


def _directory(path: Path) -> Path:
    for candidate in (path / "adapter", path):
        if (candidate / STATE).is_file() or (candidate / PEFT).is_file():
            return candidate.resolve()
    raise InputError(
        f"adapter.path: {path} holds no adapter; expected RUN/phases/N-NAME of an mgk run, or a directory"
        f" with {PEFT}"
    )


def _table(directory: Path) -> dict[str, Any]:
    """Return the adapter's table, from the configuration of the run that trained it."""
    phase, config = directory.parent, directory.parents[2] / "run.toml"
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8"))
        found: dict[str, Any] = table["phases"][phase.name.partition("-")[2]]["adapter"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"adapter.path: {directory} is not inside a run directory whose run.toml has its phase: {error}"
        ) from error
    return found


def _load(adapter: Adapter, directory: Path) -> None:
    try:
        adapter.load_state_dict(read_tensors(directory / STATE))
    except BaseException:
        adapter.detach()
        raise


def _rescale(adapter: Adapter, spec: LoadedSpec) -> None:
    if spec.weight == 1.0:
        return
    if not isinstance(adapter, Rescales):
        raise InputError(
            f"adapter.weight: the deltas of this type cannot be multiplied ({spec.path}); set weight = 1"
        )
    adapter.rescale(spec.weight)
