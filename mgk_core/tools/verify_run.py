"""Comparing a whole run directory with its own record: every file, the chain, and the weights.

The journal's lines are chained by hashes and carry the digests of the configuration, of the ledger,
of the retention matrix and of the metrics; the ledger carries those of everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from attrs import define, field, frozen

from mgk_core.contract.errors import DigestError, InputError, MgkError, StoreError
from mgk_core.contract.progress import track
from mgk_core.record.checkpoint import STATE, list_checkpoints, load_checkpoint
from mgk_core.record.commit import standing
from mgk_core.record.events import Sink, ignore
from mgk_core.record.journal import Journal, open_journal
from mgk_core.record.ledger import Ledger, read_ledger
from mgk_core.record.metrics_log import digest_of
from mgk_core.record.run_directory import (
    CONFIG,
    JOURNAL,
    LEDGER,
    LOCK,
    METRICS,
    MODEL,
    RETENTION,
    UNRECORDED,
    owner_of,
    require_run,
)
from mgk_core.record.store import TEMPORARY, Store, file_digest
from mgk_core.run.saved_model import compare_saved, saved_digest


@frozen
class Finding:
    """One mismatch with the record. path: relative to the run. harmless: nothing is lost."""

    path: str
    what: str
    harmless: bool = False


@define
class Audit:
    """What was looked at, and what was found."""

    run: Path
    checked: int = 0
    findings: list[Finding] = field(factory=list)
    covered: set[str] = field(factory=set)
    weights: str | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing was found that matters."""
        return all(f.harmless for f in self.findings)

    def hold(self, name: str, expected: str, found: str | None = None) -> None:
        """Compare one file (or a digest of it that is given) with its digest."""
        self.covered.add(name)
        self.checked += 1
        path = self.run / name
        if not path.is_file():
            self.findings.append(Finding(name, "is missing"))
            return
        digest = found or file_digest(path)
        if digest != expected:
            self.findings.append(
                Finding(
                    name, f"differs: expected {expected[:16]}…, found {digest[:16]}…"
                )
            )


def audit(run: Path) -> Audit:
    """Check every file of a run and report all differences, in the order of the record.

    :raises InputError: it is not a run directory, or a process is writing to it
    """
    require_run(run)
    owner = owner_of(run)
    if owner is not None:
        raise InputError(
            f"{run}: in use by {owner}; wait for it to end, and verify then"
        )
    found = Audit(run)
    journal = _journal(found)
    _noted(found, journal)
    ledger = _ledger(found, journal)
    for name, expected in track(list(_files(ledger)), "files"):
        found.hold(name, expected)
    _model(found, ledger)
    for folder in sorted(run.glob("phases/*/checkpoint")):
        _checkpoints(found, folder)
    _strangers(found)
    return found


def _journal(found: Audit) -> Journal:
    """Read the journal's chain; without it the rest is compared with what is left."""
    found.covered.add(JOURNAL)
    found.checked += 1
    store = Store(found.run)
    try:
        journal = open_journal(store, repair=False)
    except StoreError as error:
        found.findings.append(Finding(JOURNAL, str(error)))
        return Journal(store)
    if journal.torn:
        torn = f"its last {journal.torn} bytes are torn, as a crash leaves them; 'mgk resume' cuts them off"
        found.findings.append(Finding(JOURNAL, torn, harmless=True))
    if journal.last("started") is None:
        found.findings.append(Finding(JOURNAL, "has no beginning"))
    return journal


def _noted(found: Audit, journal: Journal) -> None:
    """Compare what the journal itself records: configuration, retention matrix, metrics."""
    for key, name in (("config", CONFIG), ("retention", RETENTION)):
        expected = journal.latest(key)
        if expected is not None:
            found.hold(name, expected)
    mark = journal.latest("metrics")
    if mark is not None:
        found.hold(
            METRICS, mark["digest"], digest_of(found.run / METRICS, int(mark["length"]))
        )


def _ledger(found: Audit, journal: Journal) -> Ledger | None:
    """Compare the ledger with the journal, and check its chain."""
    found.covered.add(LEDGER)
    found.checked += 1
    try:
        if journal.events:
            standing(Store(found.run), journal)
        ledger = read_ledger(found.run) if (found.run / LEDGER).exists() else None
    except MgkError as error:
        found.findings.append(Finding(LEDGER, f"differs: {error}"))
        return _readable(found.run)
    digest = ledger.base if ledger is not None else ""
    for entry in ledger.phases if ledger is not None else ():
        if entry.base != digest:
            found.findings.append(
                Finding(LEDGER, f"its chain breaks at phase {entry.phase!r}")
            )
        digest = entry.merged
    return ledger


def _model(found: Audit, ledger: Ledger | None) -> None:
    """Compare the tensors in model/ with the ledger's head.

    A format may keep tensors in another form (packed, cast). Then their digest is the one that the
    ledger recorded after they were compared with the merged weights.
    """
    if ledger is None or ledger.model is None or not (found.run / MODEL).is_dir():
        return
    found.checked += 1
    if ledger.model != ledger.head:
        what = f"was written from weights {ledger.model[:16]}…, the ledger ends with {ledger.head[:16]}…"
        found.findings.append(Finding(MODEL, what))
    try:
        digest = saved_digest(found.run / MODEL)
    except StoreError as error:
        found.findings.append(Finding(MODEL, str(error)))
        return
    expected = ledger.saved or ledger.head
    if digest == expected:
        return
    what = f"contains weights {digest[:16]}…, expected {expected[:16]}…"
    if ledger.saved is None:
        hint = "; the format may keep them in another form, which 'mgk verify --weights' can compare"
        found.findings.append(Finding(MODEL, what + hint, harmless=True))
    else:
        found.findings.append(Finding(MODEL, what))


def _readable(run: Path) -> Ledger | None:
    """Return a ledger with a wrong digest, if it can be read: it still lists the files expected."""
    try:
        return read_ledger(run)
    except MgkError:
        return None


def _files(ledger: Ledger | None) -> Iterable[tuple[str, str]]:
    if ledger is None:
        return
    yield from sorted(ledger.files.items())
    for entry in ledger.phases:
        yield from sorted(entry.files.items())


def _checkpoints(found: Audit, folder: Path) -> None:
    """Read every checkpoint as a resume would."""
    for path in list_checkpoints(folder):
        name = str(path.relative_to(found.run))
        files = {str(p.relative_to(found.run)) for p in path.rglob("*") if p.is_file()}
        found.covered |= files
        found.checked += len(files)
        try:
            load_checkpoint(path)
        except DigestError as error:
            found.findings.append(
                Finding(
                    str(error.path.relative_to(found.run)),
                    "differs from its checkpoint's record",
                )
            )
        except StoreError as error:
            found.findings.append(Finding(f"{name}/{STATE}", str(error)))


def _strangers(found: Audit) -> None:
    """Name files that no record knows; a temporary one is what a crash leaves."""
    for path in sorted(_plain_files(found.run)):
        name = path.relative_to(found.run).as_posix()
        if name in found.covered or name == LOCK:
            continue
        if any(fnmatch(name, pattern) for pattern in UNRECORDED):
            continue
        if any(part.startswith(TEMPORARY) for part in path.parts):
            found.findings.append(
                Finding(
                    name,
                    "was left by an interrupted write; 'mgk resume' removes it",
                    harmless=True,
                )
            )
        else:
            found.findings.append(Finding(name, "is on no record", harmless=True))


def _plain_files(run: Path) -> Iterator[Path]:
    return (p for p in run.rglob("*") if p.is_symlink() or not p.is_dir())


def audit_weights(
    found: Audit,
    *,
    without: Iterable[str] = (),
    base: Path | None = None,
    sink: Sink = ignore,
) -> None:
    """Rebuild the final weights from the base and the adapters; compare them and model/ with the ledger."""
    from mgk_core.run.rebuild import rebuild_base
    from mgk_core.run.reopen import reopen

    session = reopen(found.run, without=without, base=base, sink=sink)
    found.checked += 1
    try:
        found.weights = rebuild_base(session, session.ledger.phases)
    except DigestError as error:
        found.findings.append(
            Finding(str(error.path), f"rebuilt weights differ: {error}")
        )
        return
    head = session.ledger.head
    if found.weights != head:
        what = f"rebuilt weights {found.weights[:16]}… differ from {head[:16]}…"
        found.findings.append(Finding(LEDGER, what))
    elif session.ledger.model is not None and (found.run / MODEL).is_dir():
        saved = compare_saved(
            found.run / MODEL, session.bundle.model, session.weights.base
        )
        for name in saved.wrong:
            found.findings.append(
                Finding(MODEL, f"{name} differs from the rebuilt weights")
            )
