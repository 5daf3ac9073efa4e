"""A pipeline from start to end, resumed, or one phase of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from mgk_core.bundle import PhaseData
from mgk_core.config import load_tree
from mgk_core.errors import InputError, Interrupted, nearest
from mgk_core.events import Events, Sink, ignore
from mgk_core.identity import compare, identity_of
from mgk_core.journal import NAME as JOURNAL
from mgk_core.journal import open_journal
from mgk_core.ledger import Ledger, read_ledger
from mgk_core.metricslog import MetricsLog
from mgk_core.opening import Prepared, open_session, prepare, prepare_run
from mgk_core.phase import PhaseRun
from mgk_core.pipeline import Pipeline
from mgk_core.rebuild import replay
from mgk_core.render import to_toml
from mgk_core.rundir import Lock, claim, phase_folder, require_run
from mgk_core.scores import load_row, measure_row, retention_table, save_row
from mgk_core.session import Session, StopFlag
from mgk_core.store import Store, file_digest, folder_digests, read_json
from mgk_core.training import Diverged


@frozen
class RunResult:
    """What a run ended with. retention: as in retention.json. finished: False after ``until``."""

    directory: Path
    ledger: Ledger
    retention: Mapping[str, Any]
    times: Mapping[str, float]
    finished: bool


def run_pipeline(
    pipeline: str | Pipeline | None,
    *,
    out: Path,
    config: str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    flags: Mapping[str, Any] | None = None,
    until: str | None = None,
    without: Iterable[str] = (),
    sink: Sink = ignore,
) -> RunResult:
    """Run a pipeline into a new run directory. Nothing is written before all input is checked.

    :raises GateRefused: a phase was refused and rolled back
    :raises Interrupted: a signal came; the run can go on
    """
    prepared = prepare(load_tree(pipeline, config, overrides, flags), without)
    _check_until(prepared, until)
    fresh = not out.exists()
    claim(out)
    lock = Lock(out)
    try:
        store = Store(out)
        store.write_text("run.toml", to_toml(prepared.resolved))
        return _go(prepared, store, until, sink, accept=())
    except BaseException:
        _leave_nothing(out, fresh=fresh)
        raise
    finally:
        lock.release()


def _leave_nothing(out: Path, *, fresh: bool) -> None:
    """Remove what was written of a run that never began: there is nothing to go on with."""
    if (out / JOURNAL).exists():
        return
    for name in ("run.toml", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    if fresh:
        shutil.rmtree(out, ignore_errors=True)


def resume_run(
    run: Path, *, until: str | None = None, accept: Iterable[str] = (), without: Iterable[str] = (), sink: Sink = ignore
) -> RunResult:
    """Go on with a run where it was.

    :param accept: keys of changes that are taken and recorded
    """
    require_run(run)
    prepared = prepare_run(run, without)
    _check_until(prepared, until)
    lock = Lock(run)
    try:
        store = Store(run)
        store.sweep()
        return _go(prepared, store, until, sink, accept=accept)
    finally:
        lock.release()


def run_phase(
    run: Path,
    phase: str,
    *,
    out: Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    without: Iterable[str] = (),
    sink: Sink = ignore,
) -> RunResult:
    """Run one phase from its saved predecessor; nothing earlier is trained again.

    The phase that comes next in an unfinished run is run in place; any other one, or one with
    changed settings, in a new directory ``out`` that begins with a copy of what came before.
    """
    require_run(run)
    ledger = read_ledger(run)
    prepared = prepare(load_tree(file=run / "run.toml", overrides=overrides), without)
    names = [p.name for p in prepared.resolved.config.phases]
    if phase not in names:
        raise InputError(f"{run}: no phase {phase!r}{nearest(phase, names)}")
    index = names.index(phase)
    if missing := [n for n in names[:index] if ledger.entry(n) is None]:
        raise InputError(f"{run}: phase {phase!r} needs {', '.join(missing)} first; go on with 'mgk resume {run}'")
    if out is None and not overrides and len(ledger.phases) == index:
        return resume_run(run, until=phase, without=without, sink=sink)
    target = out or run.with_name(f"{run.name}-{phase}")
    claim(target)
    lock = Lock(target)
    try:
        store = Store(target)
        _fork(run, store, prepared, index)
        return _go(prepared, store, phase, sink, accept=(), forked=str(run))
    finally:
        lock.release()


def _fork(run: Path, store: Store, prepared: Prepared, index: int) -> None:
    """Copy the phases before ``index`` and the base's row into a new run directory."""
    store.write_text("run.toml", to_toml(prepared.resolved))
    folders = ["base", *(phase_folder(i, p.name) for i, p in enumerate(prepared.resolved.config.phases[:index]))]
    for name in folders:
        source = run / name
        if source.is_dir():
            store.write_folder(name, lambda where, source=source: shutil.copytree(source, where, dirs_exist_ok=True))  # type: ignore[misc]
    ledger = read_ledger(run)
    ledger.phases = ledger.phases[:index]
    ledger.model = None
    ledger.save(store)


def _check_until(prepared: Prepared, until: str | None) -> None:
    names = [p.name for p in prepared.resolved.config.phases]
    if until is not None and until not in names:
        raise InputError(f"--until {until}: no such phase{nearest(until, names)}")


def _go(
    prepared: Prepared, store: Store, until: str | None, sink: Sink, *, accept: Iterable[str], forked: str | None = None
) -> RunResult:
    """Open the session, find where the run stands, and go on from there."""
    journal = open_journal(store)
    log = MetricsLog(store, length=_metrics_length(store, journal.events))
    events = Events(sink, log)
    stop = StopFlag(lambda: sink({"event": "stopping"}))
    began = time.perf_counter()
    try:
        with stop.listening():
            session = open_session(prepared, store, journal, events)
            session.stop, session.times["load"] = stop, time.perf_counter() - began
            _begin(session, accept, forked)
            return _phases(session, until)
    except Interrupted as error:
        message = f"{error}; everything up to here is kept. Go on with: mgk resume {store.root}"
        raise Interrupted(message) from None
    finally:
        log.close()


def _metrics_length(store: Store, events: list[dict[str, Any]]) -> int | None:
    """Return how much of metrics.jsonl belongs to what will not be done again."""
    for entry in reversed(events):
        if entry["event"] == "checkpoint":
            folder = store.path("phases").glob(f"*-{entry['phase']}/checkpoint/step-{entry['step']:08d}/state.json")
            state = next(folder, None)
            if state is not None:
                return int(read_json(state).get("metrics_length", 0))
        if "metrics_length" in entry:
            return int(entry["metrics_length"])
    return None


def _begin(session: Session, accept: Iterable[str], forked: str | None) -> None:
    """Start a run's record, or check that it is the same run and build its base again."""
    journal, store = session.journal, session.store
    identity = identity_of(session)
    started = journal.last("started")
    if (store.root / "ledger.json").exists():
        old = read_ledger(store.root)
        session.ledger.phases, session.ledger.files = old.phases, old.files
        session.ledger.model = old.model
    if started is None:
        journal.add("started", identity=identity, environment=session.ledger.environment, forked=forked)
    else:
        known = {
            **started["identity"],
            **{k: v for e in journal.events if e["event"] == "accepted" for k, v in e["identity"].items()},
        }
        taken = compare(known, identity, accept)
        journal.add("resumed")
        if taken:
            journal.add("accepted", changes=taken, identity={k: v for k, v in identity.items() if known.get(k) != v})
        for change in taken:
            session.events("note", phase="", text=f"accepted change: {change}")
    _repair_commit(session)
    with session.timed("load"):
        replay(session, session.ledger.phases)
    _base_row(session)
    for entry in session.ledger.phases:
        row = load_row(store.path(f"{phase_folder(entry.index, entry.phase)}/scores.json"))
        if row is not None and entry.result != "rolled_back":
            session.rows.append((entry.phase, row))
            if entry.result == "kept_apart":
                session.marks[entry.phase] = "kept apart"


def _repair_commit(session: Session) -> None:
    """A ledger that is ahead of the journal was committed and not yet noted: note it."""
    noted = {e["phase"] for e in session.journal.events if e["event"] == "committed"}
    digest = file_digest(session.run / "ledger.json") if (session.run / "ledger.json").exists() else ""
    for entry in session.ledger.phases:
        if entry.phase not in noted:
            session.journal.add("committed", phase=entry.phase, result=entry.result, merged=entry.merged, ledger=digest)


def _base_row(session: Session) -> None:
    """Row 0: every probe on the untouched base; and statistics of the base."""
    store, name = session.store, "base/scores.json"
    row = load_row(store.path(name), session.ledger.base)
    if row is None:
        ctx = session.context(0)
        with session.timed("evaluation"):
            row = measure_row(session.hooks, ctx, ends=True)
        save_row(store, name, row, digest=session.ledger.base)
        scores = [attrs.asdict(s, filter=lambda a, _: a.name != "per_item") for s in row.values()]
        session.events("evaluation", phase="base", row="base", scores=scores)
    session.rows.append(("base", row))
    if session.journal.last("base") is None:
        _base_statistics(session)
        session.ledger.files = folder_digests(session.run, store.path("base"))
        digest = session.ledger.save(store)
        session.events.flush()
        length = session.events.log.sync() if session.events.log else 0
        session.journal.add(
            "base", digest=session.ledger.base, ledger=digest, metrics_length=length, **session.account()
        )


def _base_statistics(session: Session) -> None:
    """Let plugins collect what they need to know of the base, over the calibration batches."""
    if session.store.path("base/statistics.safetensors").exists():
        return  # a forked run has its predecessor's
    calibration = tuple(b for d in session.data for b in d.calibration)
    if not calibration:
        return
    ctx = session.context(0)
    ctx.base_phase = True
    ctx.data = PhaseData(train=session.data[0].train, calibration=calibration)
    with session.timed("statistics"):
        found = session.hooks.collect_statistics(ctx)
    if found:
        session.store.write_tensors("base/statistics.safetensors", found)


def _phases(session: Session, until: str | None) -> RunResult:
    """Run what is left; write retention.json after each phase, model/ after the last."""
    retention = _write_retention(session)
    for index, phase in enumerate(session.config.phases):
        entry = session.ledger.entry(phase.name)
        if entry is not None and entry.result == "rolled_back":
            raise InputError(
                f"{session.run}: phase {phase.name!r} was refused by its gates and rolled back; run it with other settings:"
                f" mgk phase {session.run} {phase.name} --out DIR --set phases.{phase.name}.…"
            )
        if entry is None:
            run = PhaseRun(session, index)
            outcome = run.run()
            row = load_row(session.store.path(f"{phase_folder(index, phase.name)}/scores.json"))
            if row is not None and outcome.result != "rolled_back":
                session.rows.append((phase.name, row))
            retention = _write_retention(session)
            length = session.events.log.sync() if session.events.log else 0
            session.journal.add(
                "phase_exit", phase=phase.name, result=outcome.result, metrics_length=length, **session.account()
            )
            if session.stop():
                raise Interrupted(f"stopped after phase {phase.name!r}")
        if phase.name == until and index + 1 < len(session.config.phases):
            return _result(session, retention, finished=False)
    _finish(session)
    return _result(session, retention, finished=True)


def _write_retention(session: Session) -> dict[str, Any]:
    split = {p.name for p in session.probes}
    taught = {p.name: p.phase for p in session.probes if p.name in split}
    measured = {name for _, row in session.rows for name in row}
    table = retention_table(session.rows, {k: v for k, v in taught.items() if k in measured}, session.marks)
    session.store.write_json("retention.json", table)
    return table


def _finish(session: Session) -> None:
    """Write the model and close the record."""
    if session.journal.last("finished") is not None:
        return
    if session.config.run.save_model:
        session.events("load", what="save")
        with session.timed("save"):
            folder = session.store.write_folder("model", session.bundle.save)
        digests = folder_digests(session.run, folder)
        session.ledger.files |= digests
        session.ledger.model = session.ledger.head
    digest = session.ledger.save(session.store)
    length = session.events.log.sync() if session.events.log else 0
    session.events("time", **{k: round(v, 3) for k, v in session.times.items()})
    session.journal.add("finished", ledger=digest, metrics_length=length, **session.account())


def _result(session: Session, retention: Mapping[str, Any], *, finished: bool) -> RunResult:
    return RunResult(session.run, session.ledger, retention, dict(session.times), finished)


__all__ = ["Diverged", "RunResult", "resume_run", "run_phase", "run_pipeline"]
