"""Trackers: what each of them kept of a run, read back with its own reader."""

import json
import shutil
import warnings
from importlib.util import find_spec

import pytest

from mgk_cli.main import invoke
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_trackers import observer
from mgk_trackers.observer import Tracker, TrackingObserver, close_all
from mgk_trackers.record import Record, scalars_of
from mgk_trackers.specs import TRACKERS, TrackerSpec

SHORT = [
    "run.threads=1", "phases.plain_text.train.steps=40", "phases.medical_dictionary.train.steps=20",
    "phases.mcq.train.steps=20", "defaults.gate.min-gain=false", "run.save_model=false",
]  # fmt: skip
PHASES = ("plain_text", "medical_dictionary", "mcq")


def needs(*names):
    for name in names:
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")


def tracked(out, *names, until=None):
    track = json.dumps(list(names))
    run_pipeline(
        "textmodel", out=out, overrides=[*SHORT, f"run.track={track}"], until=until
    )
    return out


def losses(run, phase="plain_text"):
    """Return step → loss as the run's own metrics have it."""
    events = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return {
        e["step"]: e["loss"]
        for e in events
        if e["event"] == "step" and e["phase"] == phase
    }


def scores(run):
    """Return the columns of the retention matrix: name → one value a row."""
    table = json.loads((run / "retention.json").read_text())
    names = [f"retention/{p['name']}.{p['metric']}" for p in table["probes"]]
    return dict(zip(names, map(list, zip(*table["R"], strict=True)), strict=True))


def test_tensorboard_keeps_scalars_matrix_and_digests(tmp_path):
    """Every loss at its step, every score of every row; a run in two processes is one record."""
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked(tmp_path / "run", "tensorboard", until="plain_text")
    close_all()  # as at the end of a process
    resume_run(run)
    read = EventAccumulator(
        str(run / "files/tensorboard"), size_guidance={"tensors": 0, "scalars": 0}
    )
    read.Reload()
    for phase in PHASES:
        found = {e.step: e.value for e in read.Scalars(f"{phase}/loss")}
        assert found == pytest.approx(losses(run, phase), rel=1e-6)
        assert len(read.Scalars(f"{phase}/loss")) == len(found)
    for name, values in scores(run).items():
        assert [e.value for e in read.Scalars(name)] == pytest.approx(values, rel=1e-6)
    texts = read.Tags()["tensors"]
    assert "matrix/final/text_summary" in texts
    assert "ledger/mcq/text_summary" in texts
    digest = json.loads((run / "ledger.json").read_text())["phases"][-1]["merged"]
    kept = (
        read.Tensors("ledger/mcq/text_summary")[-1].tensor_proto.string_val[0].decode()
    )
    assert kept == digest
    assert invoke(["verify", str(run)]) == 0


def log_records(path, block=32768):
    """Yield the records of a file in LevelDB's log format, which wandb's offline files have after 7 bytes."""
    data, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(data):
        left = block - place % block
        if left < 7:  # the end of a block that no header fits into
            place += left
            continue
        length, kind = (
            int.from_bytes(data[place + 4 : place + 6], "little"),
            data[place + 6],
        )
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def wandb_records(run):
    """Return every record of a run's offline files."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(run.glob("files/wandb/offline-run-*/*.wandb")):
        for data in log_records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


@pytest.mark.slow
def test_wandb_keeps_scalars_tables_configuration_and_the_report(tmp_path):
    """Offline files under one run id, also after a resume."""
    needs("wandb")
    run = tracked(tmp_path / "run", "wandb", until="plain_text")
    close_all()
    resume_run(run)
    records = wandb_records(run)
    runs = {r.run.run_id for r in records if r.WhichOneof("record_type") == "run"}
    assert runs == {json.loads((run / "files/trackers.json").read_text())["key"]}
    points = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {
                "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                for i in record.history.item
            }
            for name, value in items.items():
                points.setdefault(name, []).append(value)
    assert points["plain_text/step"] == list(losses(run))
    assert points["plain_text/loss"] == pytest.approx(list(losses(run).values()))
    for name, values in scores(run).items():
        assert points[name] == pytest.approx(values)
    table = next(run.glob(f"files/wandb/*/files/{points['matrix/final/path'][0]}"))
    assert [row[1:] for row in json.loads(table.read_text())["data"]] == [
        list(row) for row in zip(*scores(run).values(), strict=True)
    ]
    configured = {}
    for record in records:
        if record.WhichOneof("record_type") in ("run", "config"):
            config = record.run.config if record.HasField("run") else record.config
            configured |= {
                u.key or "/".join(u.nested_key): u.value_json for u in config.update
            }
    assert json.loads(configured["phases.mcq.train.steps"]) == 20
    assert "ledger/mcq" in configured
    artefacts = [
        r.artifact.name for r in records if r.WhichOneof("record_type") == "artifact"
    ]
    assert any(n.startswith("report") for n in artefacts) or find_spec("jinja2") is None


@pytest.mark.slow
def test_trackio_keeps_scalars_and_tables(tmp_path, monkeypatch):
    """Its own database has one run for both processes."""
    needs("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    home = tmp_path / "home"
    home.mkdir()
    for module in (
        "trackio",
        "trackio.utils",
        "trackio.sqlite_storage",
        "trackio.media.utils",
    ):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", home, raising=False)
    run = tracked(tmp_path / "run", "trackio", until="plain_text")
    close_all()
    resume_run(run)
    project = "textmodel"
    names = SQLiteStorage.get_runs(project)
    assert len(names) == 1
    logs = SQLiteStorage.get_logs(project, names[0])
    found = {
        log["step"]: log["plain_text/loss"] for log in logs if "plain_text/loss" in log
    }
    assert found == pytest.approx(losses(run))
    for name, values in scores(run).items():
        assert [log[name] for log in logs if name in log] == pytest.approx(values)
    assert any("matrix/final" in log for log in logs)
    assert any("ledger" in log for log in logs)


@pytest.mark.slow
def test_mlflow_keeps_scalars_parameters_tags_and_artefacts(tmp_path, monkeypatch):
    """One run in its database: finished, with the matrix after each phase and the report."""
    needs("mlflow", "sqlalchemy", "alembic")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tracked(tmp_path / "run", "mlflow", until="plain_text")
    close_all()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.resolve()}/files/mlflow.db")
    experiment = client.get_experiment_by_name("textmodel").experiment_id
    assert client.search_runs([experiment])[0].info.status == "KILLED"
    resume_run(run)
    (kept,) = client.search_runs([experiment])
    assert (kept.info.run_name, kept.info.status) == ("run", "FINISHED")
    assert kept.data.params["phases.mcq.train.steps"] == "20"
    history = client.get_metric_history(kept.info.run_id, "plain_text/loss")
    assert {m.step: m.value for m in history} == pytest.approx(losses(run))
    assert len(history) == len(losses(run))
    for name, values in scores(run).items():
        history = client.get_metric_history(kept.info.run_id, name)
        assert [m.value for m in history] == pytest.approx(values)
    digest = json.loads((run / "ledger.json").read_text())["phases"][-1]["merged"]
    assert kept.data.tags["ledger/mcq"] == digest
    artefacts = {a.path for a in client.list_artifacts(kept.info.run_id)}
    assert "matrix" in artefacts
    assert "report.html" in artefacts or find_spec("jinja2") is None


def test_a_tracker_that_fails_warns_once_and_the_run_continues(tmp_path, monkeypatch):
    """Whatever it raises: the run ends as it would without it."""

    def broken(record, spec):
        raise OSError("no space")

    monkeypatch.setattr(observer, "open_backend", broken)
    monkeypatch.setattr(TrackerSpec, "missing", lambda self: "")
    with pytest.warns(
        RuntimeWarning, match="tensorboard failed and is not used"
    ) as caught:
        run = tracked(tmp_path / "run", "tensorboard")
    assert len([w for w in caught if "tensorboard" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = tmp_path / "plain"
        run_pipeline("textmodel", out=plain, overrides=SHORT)
    ends = [
        json.loads((r / "ledger.json").read_text())["phases"][-1]["merged"]
        for r in (run, plain)
    ]
    assert ends[0] == ends[1]


def test_a_missing_library_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, capsys
):
    """The message names the extra; `plan` has it too; an unknown tracker is offered the nearest."""
    monkeypatch.setattr("mgk_trackers.specs.find_spec", lambda name: None)
    for command in (
        ["run", "textmodel", "--out", str(tmp_path / "run")],
        ["plan", "textmodel"],
    ):
        assert invoke([*command, "--set", 'run.track=["wandb","mlflow"]']) == 3
        error = capsys.readouterr().err
        assert "pip install 'mgk[wandb]'" in error
        assert "mgk[mlflow]" in error
    assert not (tmp_path / "run").exists()
    assert invoke(["plan", "textmodel", "--set", 'run.track=["wandbb"]']) == 2
    assert "did you mean 'wandb'" in capsys.readouterr().err


def test_a_phase_may_set_a_trackers_options_itself(tmp_path):
    """`run.track` adds a tracker where a phase has none, and changes no options."""
    import mgk

    found = mgk.resolve(
        "textmodel",
        set={"run.track": ["wandb"], "phases.mcq.observe.wandb.project": "mine"},
    )
    assert [p.observe[0].project for p in found.phases] == ["", "", "mine"]
    assert set(TRACKERS) == {"tensorboard", "wandb", "trackio", "mlflow"}


def test_steps_that_were_sent_are_not_sent_again(finished_run, tmp_path):
    """A resumed run repeats steps bit for bit; a record has each of them once."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    sent = []

    class Fake:
        def scalars(self, values, step):
            sent.append((step, values))

    def watch():
        tracker = Tracker(
            TRACKERS["tensorboard"](type="tensorboard"), Record.of(run), Fake()
        )
        return TrackingObserver("one", [tracker])

    first = watch()
    for step in (10, 20):
        first.on_event(
            {"event": "step", "step": step, "loss": 1.0 / step, "lr": float("nan")}
        )
    second = watch()
    for step in (20, 30):
        second.on_event({"event": "step", "step": step, "loss": 1.0 / step})
    second.on_event({"event": "note", "text": "nothing is measured"})
    assert [step for step, _ in sent] == [10, 20, 30]
    assert sent[0][1] == {"one/loss": 0.1}


def test_only_numbers_are_scalars():
    """None and NaN leave gaps; an objective's own figures come along."""
    event = {
        "event": "step",
        "step": 1,
        "loss": 2,
        "terms": None,
        "grad_norm": float("inf"),
        "figures": {"margin": 0.5},
    }
    assert scalars_of(event) == {"loss": 2.0, "margin": 0.5}
    assert scalars_of({"event": "dev", "step": 1, "loss": 2}) == {"dev_loss": 2.0}
