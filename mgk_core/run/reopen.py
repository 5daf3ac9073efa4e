"""Opening a run to look at its model: plugins and base, no data, nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mgk_core.contract.errors import InputError
from mgk_core.model.device import pick_device, set_up
from mgk_core.record.events import Events, Sink, ignore
from mgk_core.record.journal import open_journal
from mgk_core.record.ledger import read_ledger
from mgk_core.record.run_directory import claim, require_run
from mgk_core.record.store import Store
from mgk_core.run.markup import restore_markup
from mgk_core.run.session import Session
from mgk_core.run.setup import fit_threads, frozen_base, prepare_run


def reopen(
    run: Path,
    *,
    without: Iterable[str] = (),
    base: Path | None = None,
    sink: Sink = ignore,
) -> Session:
    """Build the base of a run as it was before phase 0; see `rebuild_base` for what comes after.

    :param base: where the base is now, if it was moved; checked by its digest
    :raises InputError: it is not a run directory, or its base differs from the one it started with
    """
    require_run(run)
    ledger = read_ledger(run)
    prepared = prepare_run(run, without, base)
    config = prepared.resolved.config
    device = pick_device(config.run.device)
    set_up(device, threads=config.run.threads, deterministic=config.run.deterministic)
    torch.manual_seed(config.run.seed)
    events, store = Events(sink), Store(run)
    events("load", what="base", type=config.base.type, device=str(device))
    bundle, weights = frozen_base(prepared, device)
    fit_threads(config, bundle, device, int(ledger.environment.get("threads", 0)))
    found = weights.digest
    if found != ledger.base:
        raise InputError(
            f"{base or run}: not the base that this run began with (digest {ledger.base[:16]}…, found"
            f" {found[:16]}…); restore the original base model, or give its place with --base DIR"
        )
    restore_markup(bundle, store)
    journal = open_journal(store, repair=False)
    return Session(
        config=config,
        hooks=prepared.hooks,
        store=store,
        journal=journal,
        events=events,
        device=device,
        bundle=bundle,
        ledger=ledger,
        weights=weights,
    )


@contextmanager
def reserved(out: Path, option: str = "--out") -> Iterator[None]:
    """Hold a new directory while what goes into it is made; where that fails it is gone again.

    option: of the command line, by which the user chose it
    :raises InputError: it is not empty, or no directory
    """
    fresh = claim(out, option=option)
    try:
        yield
    except BaseException:
        if fresh:
            with suppress(
                OSError
            ):  # the error that ended the work is the one to report
                out.rmdir()
        raise
