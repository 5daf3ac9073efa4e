"""A chain of phases as one adapter of the summed rank on the untouched base.

Additive low-rank deltas add up by stacking their factors: Σ sᵢ BᵢAᵢ = [s₁B₁ … sₖBₖ] [A₁; …; Aₖ].
Where the summed rank would exceed a side of the weight, the product itself takes the factor's place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import Adapter, Factors, LowRank, Saves, state_of
from mgk_core.contract.bundle import Batch, Shareable
from mgk_core.contract.errors import InputError, MergeError
from mgk_core.contract.files import read_tensors
from mgk_core.contract.outcome import FactorTransform
from mgk_core.record.adapter_files import PEFT_CONFIG, name_base
from mgk_core.record.events import Sink, ignore
from mgk_core.record.ledger import PhaseEntry, check_files
from mgk_core.record.run_directory import MODEL, TRANSFORMED, phase_folder
from mgk_core.record.store import Store
from mgk_core.run.card import CARD, adapter_card
from mgk_core.run.rebuild import rebuild_base
from mgk_core.run.reopen import reopen, reserved
from mgk_core.run.session import Session
from mgk_core.run.stored_transforms import stored_transform
from mgk_core.run.verify_merge import Verification, outputs_on, verify_merged

RECORD = "mgk-export.json"
Stack = Mapping[str, tuple[Tensor, Tensor]]
"""Weight name → (a (rank, in), b (out, rank)), fp32, the scale in b."""


@frozen
class Exported:
    """An adapter that was written.

    ranks: smallest and largest. left_out: phases that were kept apart. base: what the adapter is
    for, as others load it. outside: whether the check was made with the other library alone.
    """

    directory: Path
    phases: tuple[str, ...]
    left_out: tuple[str, ...]
    ranks: tuple[int, int]
    parameters: int
    verification: Verification
    base: str = ""
    outside: bool = False


@frozen
class _Source:
    """A run with its final weights, and what the adapter is checked on. live: on mgk's own base."""

    session: Session
    adapter: Adapter
    stack: Stack
    batches: tuple[Batch, ...]
    live: list[Tensor]
    merges: int


def export_adapter(
    run: Path,
    out: Path,
    *,
    without: Iterable[str] = (),
    base: Path | None = None,
    sink: Sink = ignore,
) -> Exported:
    """Write a run's merged phases as one adapter for its original base.

    The adapter is loaded as its users will load it: by the other library's own loader, on the base
    that it names, with the tokenizer beside it. Its outputs are compared with those of the run's
    final weights on the verification batches. Nothing is left behind where they differ.

    :raises InputError: a phase is not additive and of low rank, or none was merged
    :raises MergeError: adapter and final weights differ by more than the tolerance from rounding
    """
    session = reopen(run, without=without, base=base, sink=sink)
    merged = [e for e in session.ledger.phases if e.result == "committed"]
    if not merged:
        raise InputError(f"{run}: no phase was merged; there is nothing to export")
    stack = _stacked([_factors(session, entry) for entry in merged])
    data = session.config.phases[merged[-1].index].data
    written: list[Exported] = []
    with reserved(out):
        batches = session.hooks.load_data(data, session.bundle).verify
        live = _live(session, stack, batches)
        rebuild_base(session, session.ledger.phases)
        # On the final weights: those of a quantized base are plain now, as the check needs them.
        adapter = _attach(session, stack)
        _take_off(session, adapter)
        source = _Source(session, adapter, stack, batches, live, len(merged))
        Store(out.parent).write_folder(
            out.name, lambda where: written.append(_write(where, out, source))
        )
    return written[-1]


def _live(session: Session, stack: Stack, batches: tuple[Batch, ...]) -> list[Tensor]:
    """Return the outputs of base and adapter inside mgk."""
    adapter = _attach(session, stack)
    try:
        return outputs_on(session.bundle, batches)
    finally:
        _take_off(session, adapter)


def _take_off(session: Session, adapter: Adapter) -> None:
    adapter.detach()
    state_of(session.bundle.model).adapters.remove(adapter)


def _result(
    session: Session,
    out: Path,
    stack: Stack,
    found: Verification,
    *,
    base: str,
    outside: bool,
) -> Exported:
    by_result = {
        kind: tuple(e.phase for e in session.ledger.phases if e.result == kind)
        for kind in ("committed", "kept_apart")
    }
    ranks = [a.shape[0] for a, _ in stack.values()]
    parameters = sum(a.numel() + b.numel() for a, b in stack.values())
    return Exported(
        out,
        by_result["committed"],
        by_result["kept_apart"],
        (min(ranks), max(ranks)),
        parameters,
        found,
        base,
        outside,
    )


def _compare(source: _Source, outputs: list[Tensor], base: str) -> Verification:
    """Compare an adapter's outputs on its base with those of the final weights."""
    session = source.session
    seed = session.config.run.seed
    one = verify_merged(
        session.bundle, source.adapter, source.batches, outputs, seed=seed
    )
    # Each merge rounded once.
    found = Verification(one.error, one.bound * source.merges, one.outputs)
    if not found.ok:
        raise MergeError(
            f"the adapter on {base or 'its base'} differs from the run's final weights by"
            f" {found.error:.3g} (relative 2-norm; tolerance from rounding {found.bound:.3g}), so"
            f" nothing was written{_why(session)}; share the whole model in RUN/model"
        )
    return found


def _why(session: Session) -> str:
    """Return what is known to keep an adapter from fitting the base that others load."""
    quantized = getattr(session.config.base, "quantize", "none")
    if quantized == "none":
        return ""
    return (
        f": it was trained and merged beside {quantized} weights, and the base that it names has"
        " full-precision ones (merge.type = 'original' merges into those)"
    )


@torch.no_grad()
def _factors(session: Session, entry: PhaseEntry) -> dict[str, tuple[Tensor, Tensor]]:
    """Attach one phase's adapter to the base, read its factors as they were merged, take it off."""
    phase = session.config.phases[entry.index]
    folder = phase_folder(entry.index, entry.phase)
    check_files(session.run, entry.files)
    model = session.bundle.model
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        adapter = session.hooks.attach_adapter(model, phase.adapter, entry.phase)
    try:
        adapter.load_state_dict(
            read_tensors(session.store.path(f"{folder}/adapter/state.safetensors"))
        )
        transform = _transform(session, entry, folder)
        return {
            name: _merged(adapter, name, entry, transform) for name in adapter.targets()
        }
    finally:
        adapter.detach()


def _transform(
    session: Session, entry: PhaseEntry, folder: str
) -> FactorTransform | None:
    if not entry.transforms:
        return None
    path = session.store.path(f"{folder}/{TRANSFORMED}")
    stored = stored_transform("+".join(entry.transforms), read_tensors(path))
    if not isinstance(stored, FactorTransform):
        raise InputError(
            f"phase {entry.phase!r}: its transforms ({', '.join(entry.transforms)}) left a dense delta"
        )
    return stored


def _merged(
    adapter: Adapter, name: str, entry: PhaseEntry, transform: FactorTransform | None
) -> tuple[Tensor, Tensor]:
    """Return one weight's (a, b) with every scale in b."""
    factors = adapter.factors(name) if isinstance(adapter, LowRank) else None
    if factors is None or factors.a.dim() != 2:
        raise InputError(
            f"phase {entry.phase!r}: what its adapter does to {name} is not an additive low-rank delta of one matrix, so no"
            " single adapter holds the chain; use the whole model in model/, or 'mgk rebuild'"
        )
    a, b = _whole(factors)
    if transform is not None:
        a = transform.right(name, a).float()
    return a.clone(), b * (factors.scale * entry.scale)


def _whole(factors: Factors) -> tuple[Tensor, Tensor]:
    """BA − B₀A₀ as one pair of factors."""
    a, b = factors.a.detach().float(), factors.b.detach().float()
    if factors.a0 is None or factors.b0 is None:
        return a, b
    return torch.cat([a, factors.a0.float()]), torch.cat(
        [b, -factors.b0.float()], dim=1
    )


def _stacked(chain: list[dict[str, tuple[Tensor, Tensor]]]) -> Stack:
    result = {}
    for name in dict.fromkeys(n for phase in chain for n in phase):
        pairs = [phase[name] for phase in chain if name in phase]
        a, b = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs], dim=1)
        result[name] = _no_larger(a, b)
    return result


def _no_larger(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product whose rank is at most the weight's smaller side."""
    inside, outside = a.shape[1], b.shape[0]
    if a.shape[0] <= min(inside, outside):
        return a, b
    product = (b.double() @ a.double()).float()
    if inside <= outside:
        return torch.eye(inside, device=a.device), product
    return product, torch.eye(outside, device=a.device)


def _attach(session: Session, stack: Stack) -> Adapter:
    """Attach a LoRA with each weight's own rank and a scale of one, and fill it."""
    pattern = {name: f"re:{re.escape(name)}" for name in stack}
    ranks = {pattern[n]: a.shape[0] for n, (a, _) in stack.items()}
    largest = max(ranks.values())
    table = {
        "type": "lora", "rank": largest, "alpha": float(largest), "targets": list(pattern.values()),
        "rank_pattern": ranks, "alpha_pattern": {p: float(r) for p, r in ranks.items()}, "dtype": "float32",
        "tied": "untie",
    }  # fmt: skip
    spec = structure_spec(session.hooks.plugins.registry, "adapter", table)
    model = session.bundle.model
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        adapter = session.hooks.attach_adapter(model, spec, "export")
    state_of(model).adapters.append(adapter)
    assert isinstance(adapter, LowRank)  # noqa: S101 - that is what LoRA is
    with torch.no_grad():
        for name, (a, b) in stack.items():
            factors = adapter.factors(name)
            assert factors is not None  # noqa: S101 - plain LoRA has factors everywhere
            factors.a.copy_(a)
            factors.b.copy_(b / factors.scale)
    return adapter


def _write(where: Path, out: Path, source: _Source) -> Exported:
    """Write the adapter with all that goes along, load it as a user does, and compare."""
    session, adapter = source.session, source.adapter
    if isinstance(adapter, Saves):
        adapter.save(where)
    if not (where / PEFT_CONFIG).exists():
        raise InputError(
            "PEFT has no type for deltas of this kind; use the whole model in model/, or 'mgk rebuild'"
        )
    keys, outputs = _share(where, source)
    name_base(where, keys)
    spec = session.ledger.base_spec
    base = str(keys.get("base_model_name_or_path") or spec.get("id") or spec["type"])
    found = _compare(source, source.live if outputs is None else outputs, base)
    result = _result(
        session, out, source.stack, found, base=base, outside=outputs is not None
    )
    record = {
        "run": session.run.name,
        "base": session.ledger.base,
        "base_spec": spec,
        "phases": result.phases,
        "left_out": result.left_out,
        "weights": session.ledger.head,
        "error": found.error,
        "bound": found.bound,
        "checked": "PEFT on the base it names"
        if result.outside
        else "mgk on its own base",
    }
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (where / RECORD).write_text(text, encoding="utf-8")
    card = session.run / MODEL / CARD
    if card.is_file():
        text = adapter_card(card.read_text(encoding="utf-8"), result.phases)
        (where / CARD).write_text(text, encoding="utf-8")
    return result


def _share(
    where: Path, source: _Source
) -> tuple[Mapping[str, Any], list[Tensor] | None]:
    """Complete the directory; return the keys that name the base, and outputs as others load it."""
    bundle = source.session.bundle
    if not isinstance(bundle, Shareable):
        return {}, None
    keys = bundle.adapter_keys()
    bundle.complete_export(where)
    name_base(where, keys)
    return keys, bundle.exported_outputs(where, source.batches)
