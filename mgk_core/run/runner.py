"""A pipeline from start to end, resumed, or one phase of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from mgk_core.config.render import as_table, to_toml
from mgk_core.config.resolve import load_tree
from mgk_core.contract.errors import (
    InputError,
    Interrupted,
    MgkError,
    StoreError,
    nearest,
)
from mgk_core.contract.files import read_json
from mgk_core.contract.json_numbers import numbers
from mgk_core.contract.pipeline import Pipeline
from mgk_core.contract.progress import activity, reporting_to
from mgk_core.contract.world import World
from mgk_core.host.hooks import Hooks
from mgk_core.model.device import is_out_of_memory
from mgk_core.record.disk import Disk, environment_told
from mgk_core.record.events import Events, Sink, ignore
from mgk_core.record.journal import Journal, open_journal
from mgk_core.record.ledger import Ledger, read_ledger
from mgk_core.record.run_directory import (
    CONFIG,
    JOURNAL,
    LEDGER,
    LOCK,
    METRICS,
    MODEL,
    RETENTION,
    SCORES,
    Lock,
    claim,
    phase_folder,
    require_run,
    told_if_gone,
)
from mgk_core.record.store import Store, folder_digests, json_text, text_digest
from mgk_core.run.card import write_card
from mgk_core.run.fork import finish as finish_fork
from mgk_core.run.fork import fork
from mgk_core.run.join import joined
from mgk_core.run.out_of_memory import told_of
from mgk_core.run.phase import PhaseRun
from mgk_core.run.recorded_files import unchanged_by_plugins
from mgk_core.run.resume import begin, check_finished, find
from mgk_core.run.saved_model import SavedModel, compare_saved
from mgk_core.run.scores import load_row, retention_table
from mgk_core.run.session import Session
from mgk_core.run.setup import Prepared, open_session, prepare, prepare_run
from mgk_core.run.stop import StopFlag
from mgk_core.run.training import Diverged


@frozen
class RunResult:
    """What a run ended with. retention: as in retention.json. finished: False after ``until``."""

    directory: Path
    ledger: Ledger
    retention: Mapping[str, Any]
    times: Mapping[str, float]
    finished: bool

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the matrix and each phase's loss."""
        from mgk_core.run.result_html import result_html

        return result_html(self.directory, self.retention, finished=self.finished)


def run_pipeline(
    pipeline: str | Pipeline | None,
    *,
    out: Path,
    config: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    flags: Mapping[str, Any] | None = None,
    until: str | None = None,
    without: Iterable[str] = (),
    minutes: float | None = None,
    sink: Sink = ignore,
    disk: Disk | None = None,
    resume: bool = False,
) -> RunResult:
    """Run a pipeline into a new run directory. If the input is invalid, nothing is left behind.

    Where a launcher such as torchrun has started several processes, each of them calls this.

    :param minutes: stop as on a signal after this process has worked for so many minutes
    :param resume: continue the run in ``out`` where there is one, as a restarted job does
    :param disk: what performs the writes; tests let it fail
    :raises GateRefused: a phase was refused and rolled back
    :raises Interrupted: a signal was received; the run can be resumed
    """
    with environment_told():
        prepared = prepare(load_tree(pipeline, config, overrides, flags), without)
    _check_until(prepared, until)
    with joined() as world:
        if resume and world.same((out / CONFIG).exists()):
            _check_config(prepared, out)
            found = prepare_run(out, without)
            return _resumed(found, out, world, until, sink, disk, minutes=minutes)
        with _new_directory(out, disk, world) as store:
            store.write_text(CONFIG, to_toml(prepared.resolved))
            return _go(prepared, store, until, sink, minutes=minutes)


def resume_run(
    run: Path,
    *,
    until: str | None = None,
    accept: Iterable[str] = (),
    without: Iterable[str] = (),
    base: Path | None = None,
    minutes: float | None = None,
    auto_batch: bool = False,
    sink: Sink = ignore,
    disk: Disk | None = None,
) -> RunResult:
    """Resume a run; one that has finished is checked and its result returned.

    :param accept: keys of changes that are taken and recorded
    :param base: where the base is now, if it was moved; checked by its digest
    :param minutes: stop as on a signal after this process has worked for so many minutes
    :param auto_batch: from here on, retry a step that does not fit in smaller parts, regardless of run.toml
    """
    require_run(run)
    with environment_told():
        prepared = prepare_run(run, without, base)
    _check_until(prepared, until)
    with joined() as world:
        return _resumed(
            prepared, run, world, until, sink, disk,
            accept=accept, minutes=minutes, auto_batch=auto_batch,
        )  # fmt: skip


def _resumed(
    prepared: Prepared, run: Path, world: World, until: str | None, sink: Sink, disk: Disk | None, *,
    accept: Iterable[str] = (), minutes: float | None = None, auto_batch: bool = False,
) -> RunResult:  # fmt: skip
    """Lock a run, tidy up what a crash has left, and continue it."""

    def note(text: str) -> None:
        if world.leader:
            sink({"event": "note", "phase": "", "text": text})

    with _locked(run, world) as stale:
        if stale:
            note(f"{stale} left a stale lock; resuming the run")
        store = Store(run, disk or Disk(), stands=True, world=world)
        for name in store.sweep():
            note(f"removed {name}, which an interrupted write had left")
        return _go(
            prepared, store, until, sink,
            accept=accept, minutes=minutes, auto_batch=auto_batch,
        )  # fmt: skip


@contextmanager
def _locked(run: Path, world: World) -> Iterator[str | None]:
    """Hold a run directory's lock, on the leader; give who left a stale one."""
    locks: list[Lock] = []
    world.lead(lambda: locks.append(Lock(run)))
    try:
        yield locks[0].stale if locks else None
    finally:
        for lock in locks:
            lock.release()


def _check_config(prepared: Prepared, out: Path) -> None:
    """Check that a run which is continued with ``mgk run --resume`` was started with the same settings.

    :raises InputError: names a setting that differs
    """
    stored, given = (
        _flat(as_table(p.resolved.config)) for p in (prepare_run(out), prepared)
    )
    for key in sorted({*stored, *given}):
        if stored.get(key) != given.get(key):
            raise InputError(
                f"--resume: {out} was started with {key} = {stored.get(key)!r}, and now it is {given.get(key)!r};"
                f" give the same options, choose another --out, or continue with 'mgk resume {out}'"
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def run_phase(
    run: Path,
    phase: str,
    *,
    out: Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    without: Iterable[str] = (),
    sink: Sink = ignore,
    disk: Disk | None = None,
) -> RunResult:
    """Run one phase from its saved predecessor; nothing earlier is trained again.

    The phase that comes next in an unfinished run is run in place; any other one, or one with
    changed settings, in a new directory ``out`` that begins with a copy of what came before.
    """
    require_run(run)
    ledger = read_ledger(run)
    prepared = prepare(load_tree(file=run / CONFIG, overrides=overrides), without)
    names = [p.name for p in prepared.resolved.config.phases]
    if phase not in names:
        raise InputError(f"{run}: no phase {phase!r}{nearest(phase, names)}")
    index = names.index(phase)
    if missing := [n for n in names[:index] if ledger.entry(n) is None]:
        raise InputError(
            f"{run}: phase {phase!r} needs {', '.join(missing)} first; continue with 'mgk resume {run}'"
        )
    if out is None and not overrides and len(ledger.phases) == index:
        return resume_run(run, until=phase, without=without, sink=sink, disk=disk)
    target = out or run.with_name(f"{run.name}-{phase}")
    with joined() as world, _new_directory(target, disk, world) as store:
        store.write_text(CONFIG, to_toml(prepared.resolved))
        fork(store, open_journal(store), run, index)
        return _go(prepared, store, phase, sink)


@contextmanager
def _new_directory(out: Path, disk: Disk | None, world: World) -> Iterator[Store]:
    """Hold a new run directory; where the run ends before it has begun nothing of it is left."""
    made = [Path(p) for p in world.lead(lambda: [str(p) for p in claim(out, disk)])]
    with _locked(out, world):
        # Again, now that nobody else can have begun in between.
        world.lead(lambda: bool(claim(out)))
        store = Store(out, disk or Disk(), stands=True, world=world)
        store.sweep()
        try:
            yield store
        except BaseException as error:
            world.leave(error)
            if world.leader:
                _leave_nothing(store, made)
            raise


def _leave_nothing(store: Store, made: Sequence[Path]) -> None:
    """Remove what was written of a run that never began, folders too: there is nothing to resume."""
    if open_journal(store, repair=False).last("started") is not None:
        return
    with suppress(
        StoreError, OSError
    ):  # the error that ended the run is the one to report
        store.sweep()
        for name in (JOURNAL, LEDGER, METRICS, CONFIG, "base", "phases"):
            store.remove(name)
        if made:
            (store.root / LOCK).unlink(missing_ok=True)
        for folder in reversed(made):
            folder.rmdir()


def _check_until(prepared: Prepared, until: str | None) -> None:
    names = [p.name for p in prepared.resolved.config.phases]
    if until is not None and until not in names:
        raise InputError(f"--until {until}: no such phase{nearest(until, names)}")


def _go(
    prepared: Prepared, store: Store, until: str | None, sink: Sink, *, accept: Iterable[str] = (),
    minutes: float | None = None, auto_batch: bool = False,
) -> RunResult:  # fmt: skip
    """Find how far the run has come, open the session, and continue from there."""
    with told_if_gone(store.root):
        journal = open_journal(store)
        finish_fork(store, journal)
        stand = find(store, journal, [p.name for p in prepared.resolved.config.phases])
        if journal.last("finished") is not None and stand.ledger is not None:
            check_finished(store, journal, stand)
            # A crash may have come before it.
            store.world.lead(lambda: prepared.hooks.recorded(store.root, ""))
            return RunResult(
                store.root,
                stand.ledger,
                numbers(read_json(store.path(RETENTION))),
                {},
                finished=True,
            )
        events = Events(sink if store.world.leader else ignore)
        stop = StopFlag(
            lambda why: events.sink({"event": "stopping", "why": why}), minutes
        )
        began = time.perf_counter()
        try:
            told = _told_plainly(prepared.hooks, journal, events)
            with (
                stop.listening(),
                told,
                reporting_to(events.sink),
                activity("load"),
                _one_error(store.world),
            ):
                session = open_session(prepared, store, journal, events)
                session.stop = lambda: store.world.any(stop())
                session.times["load"] = time.perf_counter() - began
                session.auto_batch = auto_batch or session.config.run.auto_batch
                with closing(session):
                    begin(session, stand, accept)
                    result = _phases(session, until)
            if events.log is not None:
                events.log.close()
            return result
        finally:
            if events.log is not None:
                with suppress(
                    StoreError
                ):  # only after a failure, which is the one to report
                    events.log.close()


@contextmanager
def _one_error(world: World) -> Iterator[None]:
    """Let an error on one rank end the others too, before anything is cleaned up."""
    try:
        yield
    except BaseException as error:
        world.leave(error)
        raise


@contextmanager
def _told_plainly(hooks: Hooks, journal: Journal, events: Events) -> Iterator[None]:
    """Turn what ended a run into an actionable error: how to resume, what to lower, which plugin failed."""
    try:
        with environment_told():
            yield
    except (Interrupted, KeyboardInterrupt) as error:
        raise _resumable(journal, error) from None
    except MgkError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise told_of(error, events.part, events.phase) from error
        blamed = hooks.plugins.blamed(error)
        if blamed is None:
            raise
        raise blamed from error


def _resumable(journal: Journal, error: BaseException) -> Interrupted:
    """Report what an interrupted run has kept, and how to resume it."""
    said = str(error) or "stopped at once"
    if journal.last("started") is None:
        return Interrupted(f"{said}; the run had not started; nothing was kept")
    return Interrupted(
        f"{said}; everything up to here is kept. Resume with: mgk resume {journal.store.root}"
    )


def _phases(session: Session, until: str | None) -> RunResult:
    """Run what is left; write retention.json after each phase, model/ after the last."""
    for index, phase in enumerate(session.config.phases):
        entry = session.ledger.entry(phase.name)
        if entry is None:
            session.check_stop(f"before phase {phase.name!r}")
            _run_one(session, index)
        elif entry.result == "rolled_back":
            raise InputError(
                f"{session.run}: phase {phase.name!r} was refused by its gates and rolled back; run it with other settings:"
                f" mgk phase {session.run} {phase.name} --out DIR --set phases.{phase.name}.…"
            )
        elif session.journal.last("committed", phase=phase.name) and not _left(
            session, phase.name
        ):
            _leave(session, index, entry.result)
        if phase.name == until and index + 1 < len(session.config.phases):
            return _result(session, finished=False)
    session.check_stop("before the model was written")
    _finish(session)
    return _result(session, finished=True)


def _run_one(session: Session, index: int) -> None:
    run = PhaseRun(session, index)
    outcome = run.run()
    if outcome.result != "rolled_back":
        row = load_row(
            session.store.path(f"{phase_folder(index, run.ctx.phase.name)}/{SCORES}")
        )
        session.rows.append((session.config.phases[index].name, row or {}))
    _leave(session, index, outcome.result)
    if outcome.result == "rolled_back":
        raise run.refused(outcome)
    del run, outcome
    gc.collect()  # adapter, optimizer and step refer to each other: without this they outlive their phase


def _left(session: Session, phase: str) -> bool:
    return session.journal.last("phase_exit", phase=phase) is not None


def _leave(session: Session, index: int, result: str) -> None:
    """Note that a phase has ended; done again where a crash came between its commit and this."""
    phase = session.config.phases[index].name
    session.events("phase", phase=phase, index=index, state="exit", result=result)
    digest = _write_retention(session)
    mark = attrs.asdict(session.mark())
    session.journal.add(
        "phase_exit",
        phase=phase,
        result=result,
        metrics=mark,
        retention=digest,
        **session.account(),
    )
    with unchanged_by_plugins(session):
        session.world.lead(lambda: session.hooks.recorded(session.run, phase))


def _write_retention(session: Session) -> str:
    """Write the matrix so far; return the file's digest."""
    table = _retention(session)
    session.store.write_json(RETENTION, table)
    return text_digest(json_text(table))


def _retention(session: Session) -> dict[str, Any]:
    taught = {p.name: p.phase for p in session.probes}
    measured = {name for _, row in session.rows for name in row}
    return retention_table(
        session.rows, {k: v for k, v in taught.items() if k in measured}, session.marks
    )


def _finish(session: Session) -> None:
    """Write the model and close the record."""
    if session.config.run.save_model:
        session.events("load", what="save")
        with session.timed("save"):
            _save_model(session)
    digest = _write_retention(session)
    session.events("time", **{k: round(v, 3) for k, v in session.times.items()})
    session.commit("finished", retention=digest, **session.account())
    with unchanged_by_plugins(session):
        session.world.lead(lambda: session.hooks.recorded(session.run, ""))


def _save_model(session: Session) -> None:
    """Write model/ and read it back: what is in it must be the weights of the ledger's head."""
    session.weights.check("the last phase")
    saved = SavedModel(**session.world.lead(lambda: attrs.asdict(_written(session))))
    folder = session.store.path(MODEL)
    if saved.compared < len(saved.digests):
        text = (
            f"{saved.compared} of {len(saved.digests)} tensors in {MODEL}/ could be compared with the"
            " merged weights; the others are saved in another form"
        )
        session.events("note", phase="", text=text)
    session.ledger.files |= folder_digests(session.run, folder)
    session.ledger.model, session.ledger.saved = session.ledger.head, saved.digest


def _written(session: Session) -> SavedModel:
    found: list[SavedModel] = []

    def save(where: Path) -> None:
        session.bundle.save(where)
        write_card(where, session)
        found.append(compare_saved(where, session.bundle.model, session.weights.base))
        found[0].check(session.store.path(MODEL))

    session.store.write_folder(MODEL, save)
    return found[0]


def _result(session: Session, *, finished: bool) -> RunResult:
    return RunResult(
        session.run, session.ledger, _retention(session), dict(session.times), finished
    )


__all__ = ["Diverged", "RunResult", "resume_run", "run_phase", "run_pipeline"]
