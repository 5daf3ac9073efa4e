"""The chain of digests: base → adapter → merged, phase by phase. Writing it is the commit."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
import torch
from attrs import define, field, frozen

from mgk_core.contract.errors import DigestError, InputError, StoreError
from mgk_core.contract.files import read_json
from mgk_core.contract.outcome import Refusal
from mgk_core.record.run_directory import LEDGER
from mgk_core.record.store import file_digest, json_text

FORMAT = 1
LIBRARIES = (
    "mgk",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "bitsandbytes",
    "attrs",
    "pluggy",
)


@frozen
class Attempt:
    """One proposal that a gate refused, and what was tried next, with the evidence."""

    method: str
    refusals: tuple[Refusal, ...]
    evidence: dict[str, Any] = field(factory=dict)


@frozen
class PhaseEntry:
    """One phase's row. base: digest before. merged: digest after (the same where kept apart).

    last: merged with no phase to come (`mgk_core.contract.outcome.Proposal`), whatever the configuration is later.
    """

    phase: str
    index: int
    result: str
    base: str
    adapter: str
    merged: str
    scale: float = 1.0
    last: bool = False
    transforms: tuple[str, ...] = ()
    rule: str = ""
    exact: bool = True
    kept: float | None = None
    kept_total: float | None = None
    max_error: float | None = None
    verify: dict[str, float] = field(factory=dict)
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()
    data: str = ""
    steps: int = 0
    files: dict[str, str] = field(factory=dict)


@define
class Ledger:
    """What a run's model is made of. base: digest of the untouched base.

    model: digest of the weights that model/ was written from. saved: that of the tensors in its
    files, which is the same one where the format keeps every tensor as it is.
    """

    base: str
    base_spec: dict[str, Any]
    environment: dict[str, Any]
    config: str = ""
    phases: list[PhaseEntry] = field(factory=list)
    preparation: dict[str, Any] = field(factory=dict)
    files: dict[str, str] = field(factory=dict)
    model: str | None = None
    saved: str | None = None
    format: int = FORMAT

    def entry(self, phase: str) -> PhaseEntry | None:
        """Return a phase's row, or None where it has not ended."""
        return next((p for p in self.phases if p.phase == phase), None)

    @property
    def head(self) -> str:
        """Digest of the base as the committed phases left it."""
        return self.phases[-1].merged if self.phases else self.base

    def text(self) -> str:
        """Return what ledger.json contains. Nothing in it depends on when or how often a run was stopped."""
        read_back = cattrs.structure(
            json.loads(json_text(attrs.asdict(self))), Ledger
        )  # as a resumed run writes it
        return json_text(attrs.asdict(read_back))


def read_ledger(run: Path) -> Ledger:
    """Read a run's ledger; `InputError` where the directory is not one of a run."""
    path = run / LEDGER
    if not path.exists():
        raise InputError(
            f"{run}: no ledger here; expected a run directory (one that 'mgk run --out' wrote)"
        )
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected ledger format {FORMAT}, got {raw.get('format') if isinstance(raw, dict) else raw!r}"
        )
    try:
        return cattrs.structure(raw, Ledger)
    except (cattrs.BaseValidationError, TypeError, ValueError, KeyError) as error:
        known = isinstance(error, cattrs.BaseValidationError)
        reason = "; ".join(cattrs.transform_error(error)) if known else error
        raise StoreError(
            f"{path}: is damaged: {reason}; restore the file from a copy"
        ) from None


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the same bits depend on: versions, machine, device, threads. No variables."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else device.type,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "libraries": versions,
    }


def check_files(run: Path, files: Mapping[str, str]) -> None:
    """Compare files (by name below ``run``) with their digests; the first that differs is named.

    :raises DigestError: a file is missing, or not what was written
    """
    for name, expected in files.items():
        path = run / name
        found = file_digest(path) if path.is_file() else "missing"
        if found != expected:
            raise DigestError(path, expected, found)
