"""The resolved configuration: frozen, typed, everything filled in.

What a plugin's hooks read. `mgk_core.config.resolve` makes these from declarations and files.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TypeVar, cast

from attrs import field, fields, frozen

from mgk_core.contract.specs import (
    LossSpec,
    ProbeSpec,
    Slot,
    Spec,
    above,
    at_least,
    between,
    one_of,
    option,
)

S = TypeVar("S", bound=Spec)


@frozen(kw_only=True)
class RunSettings:
    """Settings of a whole run (table ``run``)."""

    seed: int = option(
        0,
        at_least(0),
        help="seed of everything random; same seed, same device, same bits",
    )
    device: str = option("auto", help="auto, cpu, cuda, cuda:N or mps")
    threads: int = option(
        0,
        at_least(0),
        help="CPU threads; 0: OMP_NUM_THREADS where it is set, else as many as this process may use, or one"
        " for a base whose products are too small to share out",
    )
    deterministic: bool = option(
        True, help="refuse operations that are not deterministic on the device"
    )
    undo: str = option(
        "memory", one_of("memory", "disk"), help="where a merge keeps the old weights"
    )
    auto_batch: bool = option(
        False,
        help="halve the micro-batch where a step is out of memory; the batch stays, and so does the step",
    )
    max_recoveries: int = option(
        20,
        at_least(0),
        help="recoveries that a phase may try after refusals before it is rolled back",
    )
    save_model: bool = option(True, help="write model/ at the end")
    reuse_baseline: bool = option(
        True,
        help="read the untouched base's scores from the cache where an earlier run measured them",
    )
    track: tuple[str, ...] = option(
        (),
        help="observers to add to every phase: tensorboard, wandb, trackio, mlflow, or any other",
    )
    base_probe: bool = option(
        True,
        help="measure a few texts of mgk where no probe measures what a language model knew before",
    )


@frozen(kw_only=True)
class TrainSettings:
    """How long and how a phase trains (table ``train``)."""

    epochs: float = option(
        1.0, above(0), help="passes over the training set; not used where steps is set"
    )
    steps: int | None = option(
        None, at_least(1), help="optimizer steps; overrides epochs"
    )
    batch_size: int = option(16, at_least(1), help="examples in an optimizer step")
    micro_batch: int | None = option(
        None, at_least(1), help="examples in memory at once; default: batch_size"
    )
    log_every: int = option(
        10,
        at_least(1),
        help="read the loss every N steps; the device is not synchronised in between",
    )
    eval_every: int | None = option(
        None, at_least(1), help="evaluate on dev every N steps"
    )
    keep: str = option(
        "last",
        one_of("last", "best"),
        help="which step is merged: the last, or the best by dev loss (needs eval_every and dev data)",
    )
    patience: int | None = option(
        None,
        at_least(1),
        help="stop after N evaluations on dev in a row without a better loss (needs eval_every and dev data)",
    )
    min_delta: float = option(
        0.0, at_least(0), help="by how much the loss on dev must fall to be better"
    )
    checkpoint_steps: int | None = option(
        None, at_least(1), help="checkpoint every N steps"
    )
    checkpoint_minutes: float | None = option(
        10.0, above(0), help="checkpoint every N minutes"
    )
    keep_checkpoints: int = option(
        2, at_least(1), help="how many checkpoints of a phase are kept"
    )
    max_bad_steps: int = option(
        5, at_least(1), help="stop after this many non-finite steps in a row"
    )

    def __attrs_post_init__(self) -> None:
        if self.keep == "best" and self.eval_every is None:
            raise ValueError(
                'keep = "best" needs eval_every, the number of steps between evaluations on dev data'
            )
        if self.patience is not None and self.eval_every is None:
            raise ValueError(
                "patience counts evaluations on dev data; set eval_every, the number of steps between them"
            )
        if self.min_delta and self.patience is None:
            raise ValueError("min_delta: is read with patience only; set patience")

    @property
    def micro(self) -> int:
        """Examples in memory at once, before anything has halved them: ``micro_batch``, or the whole batch."""
        return self.micro_batch or self.batch_size


@frozen(kw_only=True)
class EvaluateSettings:
    """What is measured at a phase's end (table ``evaluate``)."""

    live: bool = option(
        False, help="also score every probe with the adapter unmerged, before the merge"
    )
    split: str = option(
        "test",
        one_of("dev", "test"),
        help="which split of the probes makes the row; nothing selects on test",
    )
    limit: int | None = option(
        None, at_least(1), help="score at most N items of each probe"
    )
    limits: dict[str, int] = option(
        {}, help="glob of probe names = N, where fewer will do"
    )

    def __attrs_post_init__(self) -> None:
        if few := sorted(name for name, n in self.limits.items() if n < 1):
            raise ValueError(
                f"limits: expected at least 1 item, got {self.limits[few[0]]} for {few[0]!r}"
            )

    def count(self, probe: str, items: int) -> int:
        """Return how many of a probe's items are scored: the fewest that any limit allows, the first in the data's order."""
        tighter = [n for glob, n in self.limits.items() if fnmatchcase(probe, glob)]
        return min(items, *tighter, items if self.limit is None else self.limit)


SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
)
"""How a learning rate may fall, by the names that transformers has for them."""
SCHEDULE_KEYS = {
    "decay_ratio": "warmup_stable_decay",
    "cycles": "cosine_with_restarts",
    "power": "polynomial",
}
"""Key of `StepOptions` → the one schedule that reads it."""


@frozen(kw_only=True)
class StepOptions(Spec):
    """What the standard step reads of any optimizer's table: derive an optimizer's class from it.

    A key that the class does not have is not used: without ``clip`` nothing is clipped, without
    ``schedule`` the learning rate is constant.
    """

    lr: float = option(1e-3, above(0), help="learning rate after warm-up")
    clip: float | None = option(
        None, above(0), help="largest norm of the whole gradient; none: no clipping"
    )
    schedule: str = option(
        "constant",
        one_of(*SCHEDULES),
        help="how lr falls after warm-up; the names are those of transformers",
    )
    warmup_steps: int = option(0, at_least(0), help="steps in which lr rises linearly")
    warmup_ratio: float | None = option(
        None, between(0, 1), help="the same as a share of all steps, rounded up"
    )
    min_lr_ratio: float = option(
        0.0, between(0, 1), help="share of lr at which a falling schedule ends"
    )
    decay_ratio: float | None = option(
        None,
        between(0, 1),
        help="warmup_stable_decay: share of all steps in which lr falls, at the end; none: 0.1",
    )
    cycles: int | None = option(
        None, at_least(1), help="cosine_with_restarts: how often lr falls; none: 1"
    )
    power: float | None = option(
        None, above(0), help="polynomial: power of the share that is left; none: 1"
    )

    def __attrs_post_init__(self) -> None:
        if self.warmup_steps and self.warmup_ratio is not None:
            raise ValueError(
                "warmup_ratio: warmup_steps is set too; remove one of them"
            )
        for key, schedule in SCHEDULE_KEYS.items():
            if getattr(self, key) is not None and self.schedule != schedule:
                raise ValueError(
                    f"{key}: is read with schedule = {schedule!r} only, and schedule is {self.schedule!r}"
                )

    @property
    def is_constant(self) -> bool:
        """Whether lr stays as it is after warm-up."""
        return self.schedule in ("constant", "constant_with_warmup")


@frozen(kw_only=True)
class PhaseConfig:
    """One phase, resolved."""

    name: str
    title: str = ""
    data: Spec
    adapter: Spec
    optimizer: Spec
    step: Spec
    merge: Spec
    loss: Spec = LossSpec(type="likelihood")
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    retention: tuple[Spec, ...] = ()
    gate: tuple[Spec, ...] = ()
    recover: tuple[Spec, ...] = ()
    observe: tuple[Spec, ...] = ()
    transform: tuple[Spec, ...] = ()

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Every slot's entries, in the order of the fields."""
        ones = tuple(getattr(self, slot) for slot in ONE)
        return ones + tuple(spec for slot in MANY for spec in getattr(self, slot))

    def of(self, cls: type[S]) -> tuple[S, ...]:
        """Return this phase's entries of a class, in the order in which they were declared.

        A plugin asks for its own class, so that it acts only where the phase names it.
        """
        many = [spec for slot in MANY for spec in getattr(self, slot)]
        return tuple(spec for spec in many if isinstance(spec, cls))


def _slots_with(annotation: str) -> tuple[Slot, ...]:
    """Return the fields of `PhaseConfig` that are annotated so: each is a slot."""
    found = [a.name for a in fields(PhaseConfig) if str(a.type) == annotation]
    return cast("tuple[Slot, ...]", tuple(found))


ONE = _slots_with("Spec")
"""Slots of a phase that hold one type."""
MANY = _slots_with("tuple[Spec, ...]")
"""Slots of a phase that hold any number of types, in order."""
SLOTS: tuple[Slot, ...] = ("base", *ONE, *MANY, "probe")
"""Every slot that a configuration has a table for."""


@frozen(kw_only=True)
class PluginSettings:
    """Which plugins take part (table ``plugins``)."""

    without: tuple[str, ...] = option((), help="plugins to leave out")
    prefer: dict[str, str] = option(
        {}, help='"slot:type" → plugin, where two claim one type'
    )


@frozen(kw_only=True)
class RunConfig:
    """A pipeline, resolved: what runs, and what run.toml records.

    probes: those of the table ``probes``, by name; each phase's data bring further ones.
    """

    name: str
    title: str = ""
    base: Spec
    phases: tuple[PhaseConfig, ...]
    run: RunSettings = RunSettings()
    plugins: PluginSettings = field(factory=PluginSettings)
    probes: Mapping[str, ProbeSpec] = field(factory=dict)


__all__ = [
    "SCHEDULES", "EvaluateSettings", "PhaseConfig", "PluginSettings", "RunConfig", "RunSettings", "StepOptions",
    "TrainSettings",
]  # fmt: skip
