"""The rows of the table: what each method puts into a phase's ``retention``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import evolve, field, frozen

from mgk_core.contract.errors import InputError, nearest

Kind = Literal["lora", "joint"]


@frozen
class Method:
    """One row. kind: an adapter for each task, or one for all tasks at once.

    lr: learning rate where it is not the suite's own. adapter: its table where it is not the suite's LoRA.
    transform: what is done to each phase's delta.
    """

    name: str
    title: str
    retention: Mapping[str, Any] = field(factory=dict)
    kind: Kind = "lora"
    lr: float | None = None
    adapter: Mapping[str, Any] = field(factory=dict)
    transform: Mapping[str, Any] = field(factory=dict)

    @property
    def joint(self) -> bool:
        """Whether all tasks are learnt at once."""
        return self.kind == "joint"

    @property
    def needs_old_data(self) -> bool:
        """Whether it trains on examples of earlier tasks."""
        kept = self.retention.get("self-distillation", {}).get("on") == "kept"
        return self.joint or "replay" in self.retention or kept


_ALL = {"type": "full", "targets": ["*"]}
_WHOLE = {"sketch": 0, "max_tokens": 1_000_000}
_KEPT = {"share": 0.05, "calibration_share": 0.05}

_ALIKE = (
    Method("task-arithmetic", "half the sum of all deltas", {"task-arithmetic": {}}),
    Method("magmax", "task vectors of largest magnitude", {"magmax": {}}),
    Method("ties", "trimmed deltas of one sign, averaged", {"ties": {}}),
    Method("opcm", "orthogonal projection at each merge", {"opcm": {}}),
    Method(
        "dare",
        "half of each delta dropped, the rest doubled",
        {"naive": {}},
        transform={"dare": {"drop": 0.5}},
    ),
    Method("wise-ft", "half of each delta", {"naive": {}}, transform={"wise-ft": {}}),
    Method("ella", "penalty where earlier updates are large", {"ella": {}}),
    Method("clora", "null space held at random directions", {"clora": {}}),
    Method(
        "intruder-repair",
        "new leading directions of each merge scaled down",
        {"intruder-repair": {}},
    ),
)
"""Rows with the same settings on all suites."""
METHODS = (
    Method(
        "naive",
        "plain progressive merging: no protection against forgetting",
        {"naive": {}},
    ),
    Method("full-ft", "all weights trained, task after task", adapter=_ALL),
    Method(
        "joint",
        "one adapter trained on all tasks at once (approximate bound)",
        {"naive": {}},
        "joint",
    ),
    Method(
        "joint-full",
        "all weights trained on all tasks at once",
        kind="joint",
        adapter=_ALL,
    ),
    Method("o-lora", "orthogonal A", {"o-lora": {}}),
    Method("ewc", "diagonal Fisher penalty", {"ewc": {"max_tokens": 1_000_000}}),
    Method(
        "designed-a", "InfLoRA-style: A designed and frozen", {"designed-a": _WHOLE}
    ),
    Method(
        "self-distillation",
        "the base as teacher on new data",
        {"self-distillation": {}},
    ),
    Method("covariance-merge", "the transition alone", {"covariance-merge": _WHOLE}),
    *_ALIKE,
    Method("replay", "5 % of earlier data", {"replay": _KEPT}),
    Method("drift-guard", "whole C and G", {"drift-guard": _WHOLE}),
    Method(
        "drift-guard-k16",
        "C and G as 16 eigenvectors and a tail",
        {"drift-guard": _WHOLE | {"sketch": 16}},
    ),
    Method(
        "drift-guard+replay",
        "both",
        {"drift-guard": _WHOLE | {"strength": 1.0}, "replay": _KEPT},
    ),
)
REFERENCES = ("naive", "full-ft", "joint")
QUICK = ("covariance-merge", "replay", "drift-guard", "drift-guard-k16")

_SKETCHED = {"sketch": 48, "max_tokens": 1024}
KOREAN = (
    Method(
        "naive",
        "plain progressive merging: no protection against forgetting",
        {"naive": {}},
    ),
    Method(
        "full-ft",
        "all linear weights trained, phase after phase",
        {"naive": {}},
        lr=2e-5,
        adapter={"type": "full"},
    ),
    Method(
        "joint",
        "one adapter trained on the batches of all phases in mixed order",
        {"naive": {}},
        "joint",
    ),
    Method(
        "naive-low-lr",
        "plain merging at the learning rate that gains what default gains",
        {"naive": {}},
        lr=4.5e-4,
    ),
    Method("default", "what the pipeline uses: drift-guard, sketched"),
    Method(
        "covariance-merge",
        "the transition alone, which lets more of what is new pass",
        {"covariance-merge": {**_SKETCHED, "strength": 0.3}},
    ),
    Method("replay", "5 % of earlier data, all calibration text", {"replay": {}}),
    Method(
        "drift-guard+replay",
        "both",
        {"drift-guard": {**_SKETCHED, "strength": 1.0}, "replay": {}},
    ),
)
"""The rows of the suite ``korean``. An empty ``retention``: the pipeline's own."""
QUICK_KOREAN = ("default",)


_GUARD = {"sketch": 48, "max_tokens": 2048}
TEXTS = (
    Method(
        "naive",
        "plain progressive merging: no protection against forgetting",
        {"naive": {}},
    ),
    Method(
        "joint",
        "one adapter trained on all tasks at once (approximate bound)",
        {"naive": {}},
        "joint",
    ),
    Method(
        "full-ft",
        "all linear weights trained, task after task",
        {"naive": {}},
        lr=2e-5,
        adapter={"type": "full", "targets": ["all-linear"]},
    ),
    Method(
        "drift-guard", "C and G as 48 eigenvectors and a tail", {"drift-guard": _GUARD}
    ),
    Method(
        "covariance-merge",
        "the transition alone",
        {"covariance-merge": {**_GUARD, "strength": 0.3}},
    ),
    Method("o-lora", "orthogonal A", {"o-lora": {}}),
    Method("ewc", "diagonal Fisher penalty", {"ewc": {"max_tokens": 2048}}),
    Method(
        "designed-a", "InfLoRA-style: A designed and frozen", {"designed-a": _GUARD}
    ),
    Method(
        "self-distillation",
        "the base as teacher on new data",
        {"self-distillation": {}},
    ),
    Method(
        "kl-to-base",
        "KL from the model before the phase, on calibration text",
        {"self-distillation": {"on": "base", "batch": 2}},
    ),
    *_ALIKE,
    Method(
        "replay",
        "1 % of earlier data, two examples a step",
        {"replay": {"share": 0.01, "calibration_share": 0.5, "batch": 2}},
    ),
    Method(
        "drift-guard+replay",
        "both",
        {
            "drift-guard": _GUARD,
            "replay": {"share": 0.01, "calibration_share": 0.5, "batch": 2},
        },
    ),
)
"""The rows of suites of texts."""


def chosen(
    names: tuple[str, ...],
    methods: tuple[Method, ...] = METHODS,
    references: tuple[str, ...] = REFERENCES,
) -> list[Method]:
    """Return the methods asked for (all where none is named), the reference rows always with them."""
    known = [m.name for m in methods]
    for name in names:
        if name not in known:
            raise InputError(f"--method {name}: no such method{nearest(name, known)}")
    wanted = {*references, *(names or known)}
    return [m for m in methods if m.name in wanted]


def chosen_texts(names: tuple[str, ...]) -> list[Method]:
    """Return methods for a suite of texts. ``NAME@RATE`` is a method at another learning rate."""
    plain = tuple(name for name in names if "@" not in name)
    slower = [_at_rate(name) for name in names if "@" in name]
    listed = chosen(plain, TEXTS, ("naive", "joint")) if plain or not slower else []
    references = chosen(("naive",), TEXTS, ("naive", "joint"))
    return [*(listed or references), *slower]


def _at_rate(text: str) -> Method:
    name, _, rate = text.partition("@")
    (found,) = chosen((name,), TEXTS, (name,))
    try:
        lr = float(rate)
    except ValueError:
        lr = -1.0
    if not 0 < lr < 1:
        raise InputError(
            f"--method {text}: expected NAME@RATE with a learning rate, such as naive@2e-4"
        )
    return evolve(found, name=text, lr=lr)
