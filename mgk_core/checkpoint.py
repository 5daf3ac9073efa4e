"""Checkpoints: all that a phase needs to go on as if it had not been stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from safetensors.torch import save_file
from torch import Tensor

from mgk_core.adapter import Adapter
from mgk_core.context import StepFn
from mgk_core.errors import DigestError, StoreError
from mgk_core.store import Store, file_digest, read_json, read_tensors

_FILES = ("adapter", "optimizer", "rng", "best")


@define
class Progress:
    """How far a phase has come. pending: per-step figures not yet logged, so that a log window
    may reach over a resume. best: the best step by dev so far."""

    step: int = 0
    pending: list[list[float]] = field(factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    bad_in_row: int = 0
    recent: list[float] = field(factory=list)
    metrics_length: int = 0
    observers: list[Any] = field(factory=list)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return torch's generator states."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's generators where they were."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def save_checkpoint(
    store: Store,
    folder: str,
    progress: Progress,
    adapter: Adapter,
    step: StepFn,
    best: Mapping[str, Tensor] | None,
    device: torch.device,
    *,
    keep: int,
) -> Path:
    """Write ``folder/step-N`` whole, then remove all but the last ``keep``."""
    parts: dict[str, Mapping[str, Tensor]] = {
        "adapter": adapter.state_dict(),
        "optimizer": step.state_dict(),
        "rng": rng_state(device),
    }
    if best is not None:
        parts["best"] = best

    def produce(where: Path) -> None:
        digests = {}
        for name, tensors in parts.items():
            file = where / f"{name}.safetensors"
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, file)
            digests[file.name] = file_digest(file)
        state = {k: getattr(progress, k) for k in Progress.__annotations__}
        Store(where).write_json("state.json", state | {"files": digests})

    path = store.write_folder(f"{folder}/step-{progress.step:08d}", produce)
    for old in list_checkpoints(store.path(folder))[:-keep]:
        store.disk.remove(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a phase, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint; `DigestError` names a file that is not what was written."""
    state = read_json(path / "state.json")
    try:
        files = dict(state.pop("files"))
        progress = Progress(**state)
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path / 'state.json'}: is damaged: {error}") from None
    parts = {}
    for name, expected in files.items():
        found = file_digest(path / name) if (path / name).exists() else "missing"
        if found != expected:
            raise DigestError(path / name, expected, found)
        parts[name.removesuffix(".safetensors")] = read_tensors(path / name)
    return progress, parts


def newest_sound(folder: Path) -> tuple[Path | None, Sequence[str]]:
    """Return the newest checkpoint that reads whole, and what was wrong with newer ones."""
    wrong = []
    for path in reversed(list_checkpoints(folder)):
        try:
            load_checkpoint(path)
        except (DigestError, StoreError) as error:
            wrong.append(str(error))
            continue
        return path, wrong
    return None, wrong
