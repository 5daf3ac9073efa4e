"""The final model of a run in another form: a checked copy, or what an installed format makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from mgk_core.config.catalog import FORMATS, entries
from mgk_core.contract.errors import InputError, nearest
from mgk_core.record.ledger import check_files, read_ledger
from mgk_core.record.run_directory import MODEL, require_run
from mgk_core.record.store import Store
from mgk_core.run.reopen import reserved

OWN = ("hf", "peft")
"""What mgk itself exports: the whole model as its own ecosystem loads it, and one adapter."""

Exporter = Callable[[Path, Path, str | None], list[str]]
"""(model directory, directory to fill, --type) → lines for the user.

The directory to fill has the name that the user chose; files may be named after it.
"""


@frozen
class ExportedModel:
    """A model that was written. lines: what its format reports of it."""

    directory: Path
    format: str
    lines: tuple[str, ...]


def formats() -> tuple[str, ...]:
    """Return the names of all formats: mgk's own, then those of the entry-point group ``mgk.formats``."""
    return (*OWN, *(e.name for e in entries(FORMATS) if e.name not in OWN))


def export_model(
    run: Path, out: Path, *, form: str, kind: str | None = None
) -> ExportedModel:
    """Write the model of a finished run in one format; all or nothing.

    :param form: ``hf`` for a copy of RUN/model, or an installed format
    :param kind: a format's own choice, such as ``q8_0`` of ``gguf``
    :raises InputError: the format is unknown, or the run has no model yet
    :raises DigestError: a file of RUN/model is not what the run wrote
    """
    require_run(run)
    exporter = _exporter(form, kind)
    source = run / MODEL
    ledger = read_ledger(run)
    files = {n: d for n, d in ledger.files.items() if n.startswith(f"{MODEL}/")}
    if not files:
        raise InputError(
            f"{run}: has no {MODEL}/ yet, since the run has not finished; 'mgk resume {run}' first"
        )
    check_files(run, files)
    lines: list[str] = []

    def produce(where: Path) -> None:
        # Files are named after the directory, which has a temporary name until it is whole.
        named = where / out.name
        named.mkdir()
        lines.extend(exporter(source, named, kind))
        for path in named.iterdir():
            path.rename(where / path.name)
        named.rmdir()

    with reserved(out):
        Store(out.parent).write_folder(out.name, produce)
    return ExportedModel(out, form, tuple(lines))


def _exporter(form: str, kind: str | None) -> Exporter:
    if form == "hf":
        if kind is not None:
            raise InputError(f"--type {kind}: --format hf has no types; leave it out")
        return _copy
    for entry in entries(FORMATS):
        if entry.name == form:
            found: Exporter = entry.load()
            return found
    raise InputError(f"--format {form}: no such format{nearest(form, formats())}")


def _copy(model: Path, out: Path, kind: str | None) -> list[str]:
    shutil.copytree(model, out, dirs_exist_ok=True)
    return [
        f"{sum(p.is_file() for p in out.rglob('*'))} files, equal to the run's record"
    ]
