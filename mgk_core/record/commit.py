"""The two-phase commit of the ledger, and settling it after a crash.

First the journal records which ledger is about to be written (its digest), then the ledger is replaced
by one rename, which is the commit, then the journal confirms it. Whatever instant a crash falls on,
the ledger on disk is one of the two that the journal knows; anything else is damage.
"""

from __future__ import annotations

from typing import Any, Literal

from mgk_core.contract.errors import DigestError
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import Ledger, read_ledger
from mgk_core.record.run_directory import JOURNAL, LEDGER
from mgk_core.record.store import Store, file_digest, text_digest

PREPARE = "prepare"
LedgerState = Literal["none", "confirmed", "prepared"]
"""No ledger yet; the one that the journal confirms; one whose commit it only prepared."""


def commit(
    store: Store, journal: Journal, ledger: Ledger, event: str, **data: Any
) -> None:
    """Write the ledger and note ``event`` with it: all or nothing, whenever the process dies."""
    text = ledger.text()
    digest = text_digest(text)
    journal.add(PREPARE, what=event, digest=digest, data=data)
    store.write_text(LEDGER, text)
    journal.add(event, ledger=digest, **data)


def standing(store: Store, journal: Journal) -> LedgerState:
    """Return how the ledger on disk relates to the journal. Nothing is written.

    :raises DigestError: the ledger is not one that the journal knows
    """
    prepared = journal.last(PREPARE)
    path = store.path(LEDGER)
    found = file_digest(path) if path.is_file() else "no file" if path.exists() else ""
    expected = str(journal.latest("ledger") or "")
    if found == expected:
        return "confirmed" if found else "none"
    if prepared is not None and found == prepared["digest"]:
        return "prepared"
    hint = f"restore it, or {JOURNAL} where that is the one that was cut short, from a copy"
    raise DigestError(path, expected or "none yet", found or "missing", hint)


def settle(store: Store, journal: Journal) -> Ledger | None:
    """Bring journal and ledger together after a crash; return the ledger, None where there is none yet.

    :raises DigestError: the ledger is not one that the journal knows
    """
    stands = standing(store, journal)
    prepared = journal.last(PREPARE)
    if stands == "prepared" and prepared is not None:
        journal.add(prepared["what"], ledger=prepared["digest"], **prepared["data"])
    return None if stands == "none" else read_ledger(store.root)
