"""One class for each tracker: how it keeps scalars, tables, files and facts."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field

from mgk_trackers.record import Record, Table
from mgk_trackers.specs import (
    MlflowSpec,
    TensorboardSpec,
    TrackerSpec,
    TrackioSpec,
    WandbSpec,
)


class Backend(Protocol):
    """What a tracker takes. Made for a record that may exist already."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points. Names are grouped by what is before their slash: a phase, or ``retention``."""

    def table(self, name: str, table: Table, step: int) -> None:
        """Add the retention matrix as it is now."""

    def facts(self, values: Mapping[str, str]) -> None:
        """Set what is known of the run as a whole; a later value replaces an earlier one."""

    def file(self, path: Path) -> None:
        """Keep a copy of a file; a later one of its name replaces it."""

    def close(self, *, finished: bool) -> None:
        """Write what is not written yet. finished: the run has ended, else it may be resumed."""


@define
class Tensorboard:
    """TensorBoard. It has no files and no tables: those are texts."""

    writer: Any

    @classmethod
    def open(cls, record: Record, _: TensorboardSpec) -> Tensorboard:
        """Begin a new event file; TensorBoard shows all those of a directory as one run."""
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(record.files / "tensorboard"))
        lines = [f"    {key} = {value}" for key, value in record.config.items()]
        writer.add_text("configuration", "\n".join(lines), 0)
        return cls(writer)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def table(self, name: str, table: Table, step: int) -> None:
        """Add the matrix as a Markdown table."""
        self.writer.add_text(name, table.markdown(), step)

    def facts(self, values: Mapping[str, str]) -> None:
        """Add one text for each fact."""
        for name, value in values.items():
            self.writer.add_text(name, value, 0)

    def file(self, path: Path) -> None:
        """Name the file, which is in the run directory already."""
        self.writer.add_text(path.name, f"`{path.parent.name}/{path.name}`", 0)

    def close(self, *, finished: bool) -> None:
        """Close the event file."""
        self.writer.close()


@define
class Wandb:
    """Weights & Biases."""

    run: Any
    library: Any

    @classmethod
    def open(cls, record: Record, spec: WandbSpec) -> Wandb:
        """Begin or continue the run whose id is the record's key."""
        import wandb

        mode: Any = spec.mode or os.environ.get("WANDB_MODE") or "offline"
        run = wandb.init(
            project=spec.project or record.project,
            id=record.key,
            name=record.name,
            dir=str(record.files),
            mode=mode,
            resume="allow",
            config=record.config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        return cls(run, wandb)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points; each group has its own step, since phases begin at 0."""
        by_group: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            by_group.setdefault(name.split("/")[0], {})[name] = value
        for group, points in by_group.items():
            self.run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            self.run.log({**points, f"{group}/step": step})

    def table(self, name: str, table: Table, step: int) -> None:
        """Add a table."""
        rows = [list(row) for row in table.rows]
        self.run.log({name: self.library.Table(columns=list(table.columns), data=rows)})

    def facts(self, values: Mapping[str, str]) -> None:
        """Put facts into the run's configuration."""
        self.run.config.update(dict(values), allow_val_change=True)

    def file(self, path: Path) -> None:
        """Log an artefact; a later one is a new version of it."""
        artefact = self.library.Artifact(f"{path.stem}-{self.run.id}", type=path.stem)
        artefact.add_file(str(path))
        self.run.log_artifact(artefact)

    def close(self, *, finished: bool) -> None:
        """Finish this process's part; the run can be continued under its id."""
        self.run.finish()


@define
class Trackio:
    """trackio. It prints to standard output, which belongs to mgk."""

    run: Any
    library: Any

    @classmethod
    def open(cls, record: Record, spec: TrackioSpec) -> Trackio:
        """Begin or continue the run of the record's label."""
        import trackio

        with _silent():
            run = trackio.init(
                spec.project or record.project,
                name=record.label,
                group=record.name,
                config=record.config,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return cls(run, trackio)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points."""
        self.run.log(dict(values), step=step)

    def table(self, name: str, table: Table, step: int) -> None:
        """Add a table."""
        rows = [list(row) for row in table.rows]
        made = self.library.Table(columns=list(table.columns), data=rows)
        self.run.log({name: made}, step=step)

    def facts(self, values: Mapping[str, str]) -> None:
        """Add facts as a table, since a run's configuration is fixed at its beginning."""
        rows = [list(pair) for pair in values.items()]
        table = self.library.Table(columns=["what", "digest"], data=rows)
        self.run.log({"ledger": table})

    def file(self, path: Path) -> None:
        """Log an artefact."""
        artefact = self.library.Artifact(path.stem, type=path.stem)
        artefact.add_file(str(path))
        self.run.log_artifact(artefact)

    def close(self, *, finished: bool) -> None:
        """Wait until everything is in the database."""
        with _silent():
            self.run.finish()


@define
class Mlflow:
    """MLflow, by its client: nothing global is set."""

    client: Any
    run: str
    sent: dict[str, str] = field(factory=dict)

    @classmethod
    def open(cls, record: Record, spec: MlflowSpec) -> Mlflow:
        """Begin a run with the record's key as a tag, or continue the one that has it."""
        for name in ("mlflow", "alembic"):  # they announce each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        given = spec.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        local = record.files.resolve()
        client = MlflowClient(tracking_uri=given or f"sqlite:///{local}/mlflow.db")
        name = spec.experiment or record.project
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            place = None if given else f"{local.as_uri()}/mlflow"
            number = client.create_experiment(name, artifact_location=place)
        else:
            number = experiment.experiment_id
        tag = f"tags.`mgk.key` = '{record.key}'"
        found = client.search_runs([number], filter_string=tag)
        if found:
            run = found[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            tags = {"mgk.key": record.key}
            run = client.create_run(number, run_name=record.name, tags=tags).info.run_id
            for key, value in record.config.items():
                client.log_param(run, key, str(value)[:PARAMETER])
        return cls(client, run)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points."""
        for name, value in values.items():
            self.client.log_metric(self.run, _plain(name), value, step=step)

    def table(self, name: str, table: Table, step: int) -> None:
        """Add the matrix as JSON and as Markdown."""
        content = {"columns": table.columns, "data": table.rows}
        self.client.log_dict(self.run, content, f"{name}.json")
        self.client.log_text(self.run, table.markdown(), f"{name}.md")

    def facts(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for name, value in values.items():
            self.client.set_tag(self.run, _plain(name), value)

    def file(self, path: Path) -> None:
        """Copy it to the run's artefacts."""
        self.client.log_artifact(self.run, str(path))

    def close(self, *, finished: bool) -> None:
        """Set the status; a run that was stopped is shown as killed until it is resumed."""
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


PARAMETER = 6000
"""Characters of a parameter's value that MLflow takes."""


def _plain(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


@contextlib.contextmanager
def _silent() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def open_backend(record: Record, spec: TrackerSpec) -> Backend:
    """Open a tracker's record of a run."""
    if isinstance(spec, TensorboardSpec):
        return Tensorboard.open(record, spec)
    if isinstance(spec, WandbSpec):
        return Wandb.open(record, spec)
    if isinstance(spec, TrackioSpec):
        return Trackio.open(record, spec)
    assert isinstance(spec, MlflowSpec)  # noqa: S101 - there are four
    return Mlflow.open(record, spec)
