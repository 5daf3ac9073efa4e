"""The observers that `run.track` names, and their options."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from attrs import frozen

from mgk_core.contract.specs import Spec, one_of, option


@frozen(kw_only=True)
class TrackerSpec(Spec):
    """What every tracker has. libraries: import names that it needs."""

    libraries: ClassVar[tuple[str, ...]] = ()

    def missing(self) -> str:
        """Return what has to be installed first; empty where nothing has."""
        absent = [name for name in self.libraries if find_spec(name) is None]
        if not absent:
            return ""
        return f"{self.type} needs {', '.join(absent)}: pip install 'mgk[{self.type}]'"


@frozen(kw_only=True)
class TensorboardSpec(TrackerSpec):
    """Event files below RUN/files/tensorboard; `tensorboard --logdir runs` finds those of every run."""

    libraries: ClassVar[tuple[str, ...]] = ("tensorboard",)


@frozen(kw_only=True)
class WandbSpec(TrackerSpec):
    """Weights & Biases. Offline unless it is asked to send: files below RUN/files, for `wandb sync`."""

    libraries: ClassVar[tuple[str, ...]] = ("wandb",)
    project: str = option("", help="project; empty: the pipeline's name")
    mode: str = option(
        "",
        one_of("", "offline", "online"),
        help="empty: what WANDB_MODE is, and offline where it is not set",
    )


@frozen(kw_only=True)
class TrackioSpec(TrackerSpec):
    """trackio: a local database, shown by `trackio show`."""

    libraries: ClassVar[tuple[str, ...]] = ("trackio",)
    project: str = option("", help="project; empty: the pipeline's name")


@frozen(kw_only=True)
class MlflowSpec(TrackerSpec):
    """MLflow: the server of MLFLOW_TRACKING_URI, else a database in RUN/files."""

    libraries: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    experiment: str = option("", help="experiment; empty: the pipeline's name")
    uri: str = option(
        "", help="tracking server; empty: MLFLOW_TRACKING_URI, else RUN/files/mlflow.db"
    )


TRACKERS = {
    "tensorboard": TensorboardSpec,
    "wandb": WandbSpec,
    "trackio": TrackioSpec,
    "mlflow": MlflowSpec,
}
