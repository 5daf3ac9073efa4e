"""Other models out of a run's record: any prefix, a phase left out, a phase scaled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen

from mgk_core.contract.errors import InputError, nearest
from mgk_core.record.events import Sink, ignore
from mgk_core.record.ledger import Ledger, PhaseEntry
from mgk_core.record.store import Store
from mgk_core.run.rebuild import rebuild_base
from mgk_core.run.reopen import reopen, reserved
from mgk_core.run.session import Session

RECORD = "mgk-rebuild.json"


@frozen
class Rebuilt:
    """A model that was built again. recorded: the ledger's digest of this very model, None where it never was."""

    directory: Path
    phases: tuple[str, ...]
    scales: Mapping[str, float]
    weights: str
    recorded: str | None


def rebuild(
    run: Path,
    out: Path,
    *,
    until: str | None = None,
    leave_out: Iterable[str] = (),
    scales: Mapping[str, float] | None = None,
    without: Iterable[str] = (),
    base: Path | None = None,
    sink: Sink = ignore,
) -> Rebuilt:
    """Rebuild a run's model into ``out``; the run itself is not changed.

    A prefix must come out bit-identical, and is checked against the ledger. Leaving out or scaling
    phases gives a model that never existed; later phases are merged as they were trained.

    :raises InputError: a phase is unknown or was never merged
    :raises DigestError: a file or the rebuilt weights do not match the ledger
    """
    session = reopen(run, without=without, base=base, sink=sink)
    entries = _prefix(session.ledger, until)
    factors = dict(scales or {}) | dict.fromkeys(leave_out, 0.0)
    for name in factors:
        _merged(session.ledger, entries, name)
    with reserved(out):
        with session.timed("merge"):
            digest = rebuild_base(session, entries, scales=factors or None)
        used = tuple(
            e.phase
            for e in entries
            if e.result == "committed" and factors.get(e.phase, 1.0) != 0.0
        )
        recorded = (
            digest
            if digest
            in {session.ledger.base, *(e.merged for e in session.ledger.phases)}
            else None
        )
        result = Rebuilt(out, used, factors, digest, recorded)
        with session.timed("save"):
            Store(out.parent).write_folder(
                out.name, lambda where: _write(where, session, result)
            )
    return result


def _write(where: Path, session: Session, result: Rebuilt) -> None:
    session.bundle.save(where)
    Store(where).write_json(RECORD, _record(session, result))


def _prefix(ledger: Ledger, until: str | None) -> list[PhaseEntry]:
    """Return the rows up to a phase, it included; all where None."""
    if until is None:
        return ledger.phases
    names = [p.phase for p in ledger.phases]
    if until not in names:
        raise InputError(
            f"--until {until}: the run has no such phase that has ended{nearest(until, names)}"
        )
    return ledger.phases[: names.index(until) + 1]


def _merged(ledger: Ledger, entries: list[PhaseEntry], name: str) -> None:
    """Refuse a phase that the prefix does not hold merged."""
    entry = next((e for e in entries if e.phase == name), None)
    if entry is None and ledger.entry(name) is not None:
        raise InputError(
            f"{name}: comes after the phase at which --until stops, so it is left out already"
        )
    if entry is None:
        raise InputError(
            f"{name}: no such phase in what is rebuilt{nearest(name, [e.phase for e in ledger.phases])}"
        )
    if entry.result != "committed":
        raise InputError(
            f"{name}: was {entry.result.replace('_', ' ')}, never merged; there is nothing to scale or leave out"
        )


def _record(session: Session, result: Rebuilt) -> dict[str, object]:
    return {
        "run": session.run.name,
        "base": session.ledger.base,
        "base_spec": session.ledger.base_spec,
        "phases": result.phases,
        "scales": dict(result.scales),
        "weights": result.weights,
        "recorded": result.recorded,
    }
