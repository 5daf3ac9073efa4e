"""A new run directory that begins with a copy of what an earlier run did before one of its phases."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from mgk_core.contract.context import FILES
from mgk_core.contract.errors import InputError, StoreError
from mgk_core.record.commit import commit
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import check_files, read_ledger
from mgk_core.record.run_directory import phase_folder
from mgk_core.record.store import Store

FORKING, FORKED = "forking", "forked"


def fork(store: Store, journal: Journal, source: Path, index: int) -> None:
    """Copy the base's row and the phases before ``index`` of the run ``source``.

    What will be copied is written to the journal first, so that `finish` can resume after a crash.
    """
    journal.add(FORKING, source=str(source.resolve()), index=index)
    finish(store, journal)


def finish(store: Store, journal: Journal) -> None:
    """Do what is left of a fork; nothing where none was begun."""
    begun = journal.last(FORKING)
    if begun is None or journal.last(FORKED) is not None:
        return
    source, index = Path(begun["source"]), int(begun["index"])
    try:
        ledger = read_ledger(source)
        ledger.phases = ledger.phases[:index]
        ledger.model = ledger.saved = None
        ledger.files = {k: v for k, v in ledger.files.items() if k.startswith("base/")}
        check_files(source, ledger.files)
        for entry in ledger.phases:
            check_files(source, entry.files)
        phases = [phase_folder(e.index, e.phase) for e in ledger.phases]
        for name in ("base", *phases):
            store.write_folder(name, functools.partial(_copy, source / name))
    except OSError as error:
        raise StoreError(
            f"{source}: cannot be copied: {error.strerror or error}"
        ) from error
    commit(store, journal, ledger, FORKED)


def _copy(source: Path, where: Path) -> None:
    """Copy plain files only: what a link in a foreign directory points to is not the run's."""
    for path in sorted(source.rglob("*")):
        if FILES in path.relative_to(source).parts[:1]:
            continue  # plugins' own files, on no record
        target = where / path.relative_to(source)
        if path.is_symlink():
            raise InputError(
                f"{path}: is a link; a run directory holds plain files and folders only: remove it"
            )
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            shutil.copyfile(path, target)
