"""Rebuild the base as it was after any phase, from the ledger and the adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import evolve

from mgk_core.contract.errors import DigestError, InputError
from mgk_core.contract.files import read_tensors
from mgk_core.contract.outcome import Proposal
from mgk_core.model.digest import tensors_digest
from mgk_core.record.ledger import PhaseEntry, check_files
from mgk_core.record.run_directory import TRANSFORMED, phase_folder
from mgk_core.run.attached import attached
from mgk_core.run.session import Session
from mgk_core.run.stored_transforms import stored_transform

Scale = Callable[[str], float]


def rebuild_base(
    session: Session,
    entries: list[PhaseEntry],
    *,
    scales: Mapping[str, float] | None = None,
    each: bool = True,
) -> str:
    """Merge the committed phases of ``entries`` into the session's base; return its digest.

    scales: phase → factor on its deltas (0: left out). Without them the digest after each phase, or
    after the last one alone where ``each`` is false, is compared with the ledger: only an unchanged
    chain can pass.

    :raises DigestError: a file or the weights do not match the ledger
    """
    factors = scales or {}
    digest = session.ledger.base
    merged = [
        e
        for e in entries
        if e.result == "committed" and factors.get(e.phase, 1.0) != 0.0
    ]
    for entry in merged:
        _merge_again(session, entry, factors.get(entry.phase, 1.0))
        if not each and entry is not merged[-1]:
            continue
        digest = session.weights.accept(f"merging phase {entry.phase!r} again")
        if not factors and digest != entry.merged:
            raise DigestError(
                session.store.path(phase_folder(entry.index, entry.phase)),
                entry.merged,
                digest,
            )
    return digest


def _merge_again(session: Session, entry: PhaseEntry, factor: float) -> None:
    """Attach one phase's adapter, load it, merge as it was merged, and take it off."""
    index = next(
        (i for i, p in enumerate(session.config.phases) if p.name == entry.phase), None
    )
    if index is None:
        raise InputError(
            f"the ledger has phase {entry.phase!r}, which the configuration lacks"
        )
    phase = session.config.phases[index]
    folder = phase_folder(entry.index, entry.phase)
    check_files(session.run, entry.files)
    model = session.bundle.model
    state = read_tensors(session.store.path(f"{folder}/adapter/state.safetensors"))
    if tensors_digest(state) != entry.adapter:
        raise DigestError(
            session.store.path(f"{folder}/adapter"),
            entry.adapter,
            tensors_digest(state),
        )
    with attached(session.hooks, model, phase.adapter, entry.phase) as adapter:
        adapter.load_state_dict(state)
        proposal = _proposal(session, entry, folder, factor)
        report = session.hooks.merge(model, adapter, proposal, phase.merge)
        if report.undo is not None:
            report.undo.release()


def _proposal(
    session: Session, entry: PhaseEntry, folder: str, factor: float
) -> Proposal:
    proposal = Proposal(scale=entry.scale * factor, last=entry.last)
    path = session.store.path(f"{folder}/{TRANSFORMED}")
    if not entry.transforms:
        return proposal
    stored = stored_transform("+".join(entry.transforms), read_tensors(path))
    return proposal if stored is None else evolve(proposal, transforms=(stored,))
