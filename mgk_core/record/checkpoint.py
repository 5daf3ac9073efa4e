"""Checkpoints: all that a phase needs to resume as if it had not been stopped."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.context import StepFn
from mgk_core.contract.errors import DigestError, StoreError
from mgk_core.contract.files import read_json, read_tensors
from mgk_core.record.metrics_log import Mark
from mgk_core.record.store import Store, file_digest, json_text, put_tensors, put_text

STATE = "state.json"
PARTS = (
    "adapter",
    "optimizer",
    "rng",
)  # of every checkpoint; "best" comes with them where it is kept
FIGURES = 6  # of a step that is not logged yet


@define
class Progress:
    """How far a phase has come.

    pending: per-step figures not yet logged, so that a log window may reach over a resume. best_step:
    the best step by dev so far. metrics: how much of metrics.jsonl belongs to the steps done.
    micro_batch: what out-of-memory halved it to. check: the next batch's loss, by which a resumed run
    checks that it resumes where it was. waited: evaluations on dev in a row that were not better.
    stopped: whether that ended the training (``train.patience``). frozen: which of the adapter's parameters a plugin fixed before
    training. figures: name → (sum, number) of an objective's figures, not yet logged either.
    """

    step: int = 0
    pending: list[list[float]] = field(factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    bad_in_row: int = 0
    waited: int = 0
    stopped: bool = False
    metrics: Mark = field(factory=Mark)
    micro_batch: int | None = None
    check: float | None = None
    observers: list[Any] = field(factory=list)
    frozen: list[int] = field(factory=list)
    figures: dict[str, list[float]] = field(factory=dict)


@frozen(eq=False)
class Loaded:
    """A checkpoint as read. parts: ``adapter``, ``optimizer``, ``rng`` and, where kept, ``best``."""

    path: Path
    progress: Progress
    parts: dict[str, dict[str, Tensor]]


def seed_all(seed: int) -> None:
    """Seed every generator that a plugin may draw from without saying so."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - a plugin's library may use the old one


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's, Python's and numpy's generators."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - see `seed_all`
    assert version == 3 and kind == "MT19937"  # noqa: S101, PT018 - fixed since Python 3.2 and numpy 1.0
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(
            [] if gauss is None else [gauss], dtype=torch.float64
        ),
        "numpy": torch.tensor(
            [*map(int, keys), position, has_gauss], dtype=torch.int64
        ),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators where they were."""
    torch.set_rng_state(states["cpu"])
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = states["numpy"].tolist()
    state = (
        "MT19937",
        np.array(keys, dtype=np.uint32),
        position,
        has_gauss,
        float(states["numpy_gauss"][0]),
    )
    np.random.set_state(state)  # noqa: NPY002 - see `seed_all`
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
            put_tensors(file, tensors)
            digests[file.name] = file_digest(file)
        state = json.loads(json_text(attrs.asdict(progress) | {"files": digests}))
        put_text(where / STATE, json_text(state | {"hash": _hash(state)}))

    path = store.write_folder(f"{folder}/step-{progress.step:08d}", produce)
    for old in list_checkpoints(store.path(folder))[:-keep]:
        store.remove(f"{folder}/{old.name}")
    return path


def _hash(state: Mapping[str, Any]) -> str:
    return hashlib.blake2b(
        json.dumps(state, sort_keys=True).encode(), digest_size=16
    ).hexdigest()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a phase, oldest first; they are written whole, but may be damaged since."""
    return sorted(
        p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()
    )


def load_checkpoint(path: Path) -> Loaded:
    """Read a checkpoint.

    :raises DigestError: a file is not what was written
    :raises StoreError: a file is missing or cannot be read
    """
    progress, files = _read_state(path / STATE)
    parts = {}
    for name, expected in files.items():
        found = file_digest(path / name) if (path / name).is_file() else "missing"
        if found != expected:
            raise DigestError(path / name, expected, found)
        parts[name.removesuffix(".safetensors")] = read_tensors(path / name)
    return Loaded(path, progress, parts)


def _read_state(path: Path) -> tuple[Progress, dict[str, str]]:
    state = read_json(path)
    if not isinstance(state, dict):
        raise StoreError(f"{path}: is damaged: expected a table")
    expected = str(state.pop("hash", "none"))
    if (found := _hash(state)) != expected:
        raise DigestError(path, expected, found)
    try:
        files = cattrs.structure(state.pop("files"), dict[str, str])
        progress = cattrs.structure(state, Progress)
    except (
        cattrs.BaseValidationError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise StoreError(
            f"{path}: is damaged: it is not the state of a checkpoint ({type(error).__name__})"
        ) from None
    whole = all(len(row) == FIGURES for row in progress.pending) and progress.step >= 0
    plain = set(files) >= {f"{p}.safetensors" for p in PARTS} and all(
        Path(name).name == name for name in files
    )
    if not whole or not plain:
        raise StoreError(
            f"{path}: is damaged: it lists other figures or files than a checkpoint has"
        )
    return progress, files


def newest_sound(folder: Path) -> tuple[Loaded | None, list[str]]:
    """Return the newest checkpoint that reads whole, and what was wrong with newer ones."""
    wrong: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path), wrong
        except (DigestError, StoreError) as error:
            wrong.append(str(error))
    return None, wrong
