"""How far a run has come, and bringing a session there: the same inputs, its base rebuilt, the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import attrs
from attrs import define
from torch import Tensor

from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.errors import DigestError, InputError
from mgk_core.record.checkpoint import Loaded, newest_sound
from mgk_core.record.commit import settle
from mgk_core.record.journal import Journal
from mgk_core.record.ledger import Ledger, check_files
from mgk_core.record.metrics_log import Mark, MetricsLog, digest_of
from mgk_core.record.run_directory import (
    BASE,
    CONFIG,
    METRICS,
    RETENTION,
    SCORES,
    STATISTICS,
    phase_folder,
)
from mgk_core.record.store import Store, file_digest, folder_digests
from mgk_core.run.baseline_cache import cached_evaluation
from mgk_core.run.identity import compare, identity_of
from mgk_core.run.markup import record_markup
from mgk_core.run.rebuild import rebuild_base
from mgk_core.run.scores import load_row, measure_row, plain, save_row
from mgk_core.run.session import PhaseSession, Session

BASE_STATISTICS = f"{BASE}/{STATISTICS}"


@define(eq=False)
class ResumePoint:
    """What a run directory records, read before anything heavy is loaded.

    checkpoint: of the first phase that has not ended. mark: how much of metrics.jsonl stays.
    damaged: what is done again in place of a damaged file, and why.
    """

    ledger: Ledger | None = None
    checkpoint: Loaded | None = None
    mark: Mark = attrs.field(factory=Mark)
    damaged: list[str] = attrs.field(factory=list)


def find(store: Store, journal: Journal, phases: Sequence[str]) -> ResumePoint:
    """Settle what a crash left in flight, compare every file with its digest, find where to continue.

    :raises DigestError: a file is not what was written
    """
    ledger = settle(store, journal)
    stand = ResumePoint(ledger, mark=_last_mark(journal))
    if (
        journal.last("finished") is None
        and (derived := _retention(store, journal)) is not None
    ):
        stand.damaged.append(f"{derived}; it will be written again")
    ended = () if ledger is None else tuple(p.phase for p in ledger.phases)
    if ledger is not None:
        check_files(store.root, ledger.files)
        for entry in ledger.phases:
            check_files(store.root, entry.files)
    for index, name in enumerate(phases):
        folder = f"{phase_folder(index, name)}/checkpoint"
        if not store.path(folder).is_dir():
            continue
        if name in ended:
            store.remove(
                folder
            )  # the phase was committed, and the process died before it tidied up
            continue
        stand.checkpoint, wrong = newest_sound(store.path(folder))
        stand.damaged += [
            f"a checkpoint is damaged and was left out: {w}" for w in wrong
        ]
        if stand.checkpoint is not None:
            stand.mark = stand.checkpoint.progress.metrics
    return stand


def check_finished(store: Store, journal: Journal, stand: ResumePoint) -> None:
    """Compare what the ledger does not list of a finished run with the journal.

    :raises DigestError: a file is not what was written
    """
    expected = next(
        (e["config"] for e in reversed(journal.events) if "config" in e), None
    )
    if expected is not None:
        check_files(store.root, {CONFIG: expected})
    if (
        found := digest_of(store.path(METRICS), stand.mark.length)
    ) != stand.mark.digest:
        raise DigestError(store.path(METRICS), stand.mark.digest, found)
    if (wrong := _retention(store, journal)) is not None:
        raise wrong


def _retention(store: Store, journal: Journal) -> DigestError | None:
    """Return what is wrong with retention.json, which is derived from the rows of the matrix."""
    expected = next(
        (e["retention"] for e in reversed(journal.events) if "retention" in e), None
    )
    try:
        check_files(store.root, {} if expected is None else {RETENTION: expected})
    except DigestError as error:
        return error
    return None


def _last_mark(journal: Journal) -> Mark:
    marks = (e["metrics"] for e in reversed(journal.events) if "metrics" in e)
    return Mark(**next(marks, {}))


def begin(session: Session, stand: ResumePoint, accept: Iterable[str]) -> None:
    """Start a run's record, or check that it is the same run; then build its base again."""
    journal = session.journal
    identity = identity_of(session)
    if stand.ledger is not None:
        _adopt(session, stand.ledger)
    if journal.last("started") is None:
        record_markup(session.bundle, session.store)
        config = file_digest(session.store.path(CONFIG))
        journal.add(
            "started",
            identity=identity,
            environment=session.ledger.environment,
            config=config,
        )
    else:
        _check_same(session, stand, identity, accept)
    for message in stand.damaged:
        journal.add("damaged", text=message)
        session.events("note", phase="", text=message)
    session.checkpoint = stand.checkpoint
    _open_metrics(session, stand)
    with session.timed("load"):
        rebuild_base(session, session.ledger.phases, each=False)
    _base_row(session)
    _earlier_rows(session)


def _open_metrics(session: Session, stand: ResumePoint) -> None:
    """Cut metrics.jsonl to what is on record; the leader alone writes on."""

    def work() -> None:
        session.events.log = MetricsLog(session.store, stand.mark.length)

    session.world.lead(work)


def _adopt(session: Session, ledger: Ledger) -> None:
    """Take the ledger of the run directory; the base must be the one that it names."""
    if session.ledger.base != ledger.base and session.journal.last("started") is None:
        raise InputError(
            f"the base has changed: was {ledger.base}, is {session.ledger.base}; a phase can be run again only on the"
            " base that its run began with"
        )
    session.ledger.phases = ledger.phases
    session.ledger.files = ledger.files
    session.ledger.model = ledger.model
    session.ledger.saved = ledger.saved


def _check_same(
    session: Session,
    stand: ResumePoint,
    identity: dict[str, str],
    accept: Iterable[str],
) -> None:
    """Refuse to resume if an input has changed, unless the change was accepted; that is recorded."""
    journal = session.journal
    started = journal.last("started")
    assert started is not None  # noqa: S101 - the caller looked
    known = dict(started["identity"])
    for event in journal.events:
        known |= event["identity"] if event["event"] == "accepted" else {}
    config = next(e["config"] for e in reversed(journal.events) if "config" in e)
    found = {METRICS: digest_of(session.store.path(METRICS), stand.mark.length)}
    expected = {METRICS: stand.mark.digest}
    now = file_digest(session.store.path(CONFIG))
    if (
        now == config
    ):  # then a key that was not recorded is newer than the run, and has its default
        known = {k: v for k, v in identity.items() if k.startswith("config.")} | known
    if all(known.get(k) == v for k, v in identity.items() if k.startswith("config.")):
        expected[CONFIG], found[CONFIG] = (
            config,
            now,
        )  # no value has changed: then nothing may have
    taken = compare(known | expected, identity | found, accept)
    journal.add("resumed")
    if taken:
        changed = {k: v for k, v in identity.items() if known.get(k) != v}
        gone = {k: "absent" for k in known if k not in identity}
        journal.add("accepted", changes=taken, identity=changed | gone, config=now)
    for change in taken:
        session.events("note", phase="", text=f"accepted change: {change}")
    session.changed = bool(taken)


def _base_row(session: Session) -> None:
    """Score the baseline (every probe on the untouched base) and collect statistics of the base."""
    store, name = session.store, f"{BASE}/{SCORES}"
    row = load_row(store.path(name), session.ledger.base)
    if row is None:
        with session.timed("evaluation"):
            stop = partial(session.check_stop, "while the untouched base was scored")
            cached = cached_evaluation(session)
            row = measure_row(
                cached or session.hooks, session.context(0), ends=True, stop=stop
            )
            session.weights.check("the baseline's scores")
        save_row(store, name, row, digest=session.ledger.base)
        if cached is not None and cached.reused:
            text = f"{cached.reused} of {len(row)} baseline scores were measured by an earlier run"
            session.events("note", phase="base", text=text)
    session.rows.append(("base", row))
    if session.journal.last("base") is None:
        session.events(
            "evaluation", phase="base", row="base", scores=plain(row.values())
        )
        _base_statistics(session)
        session.weights.check("the base's statistics")
        session.ledger.files = folder_digests(session.run, store.path("base"))
        session.commit("base", digest=session.ledger.base, **session.account())


def _base_statistics(session: Session) -> None:
    if BASE_STATISTICS in session.ledger.files:
        return  # a forked run has its predecessor's
    found = base_statistics(session)
    if found:
        session.store.write_tensors(BASE_STATISTICS, found)


def base_statistics(session: PhaseSession) -> Mapping[str, Tensor]:
    """Let plugins collect what they need to know of the base, over the calibration batches."""
    calibration = tuple(b for d in session.data for b in d.calibration)
    if not calibration:
        return {}
    ctx = session.context(0)
    ctx.base_phase = True
    ctx.data = PhaseData(train=session.data[0].train, calibration=calibration)
    with session.timed("statistics"):
        return session.hooks.collect_statistics(ctx)


def _earlier_rows(session: Session) -> None:
    """Load the rows of the phases that have ended."""
    for entry in session.ledger.phases:
        row = load_row(
            session.store.path(f"{phase_folder(entry.index, entry.phase)}/{SCORES}")
        )
        if row is not None and entry.result != "rolled_back":
            session.rows.append((entry.phase, row))
            if entry.result == "kept_apart":
                session.marks[entry.phase] = "kept apart"
