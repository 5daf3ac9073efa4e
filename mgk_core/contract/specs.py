"""Configuration classes: what every slot's class derives from, and the registry of types.

A plugin registers its own frozen attrs classes in `mgk_register_specs`; the core reads tables
into them and knows no plugin's keys.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Protocol,
    get_args,
    runtime_checkable,
)

from attrs import Attribute, asdict, field, frozen

from mgk_core.contract.errors import InputError, PluginError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mgk_core.contract.bundle import Bundle, PhaseData

Slot = Literal[
    "base",
    "data",
    "adapter",
    "optimizer",
    "step",
    "loss",
    "merge",
    "retention",
    "gate",
    "recover",
    "observe",
    "metric",
    "transform",
    "probe",
]
"""What a plugin is chosen for: a table of the configuration, or (``metric``) a probe's metric."""


@frozen
class Retired:
    """A key that a class no longer has. default: what earlier versions wrote for it; instead: what to do now."""

    default: Any
    instead: str


@frozen(kw_only=True)
class Spec:
    """Base of every slot's class. ``type`` is what the user wrote, and what hooks are chosen by.

    retired: keys of earlier versions, which their run directories still name. At its default such a
    key is skipped; at any other value it is an error.
    """

    retired: ClassVar[Mapping[str, Retired]] = {}

    type: str

    def missing(self) -> str:
        """Return what has to be installed before a run can use this; empty where nothing has.

        Asked before anything is loaded. A run that is only opened (`mgk show`, `mgk ask`) does not ask.
        """
        return ""


@runtime_checkable
class Measures(Protocol):
    """Optional promise of a spec's class: how fast this machine is at what bases of this type compute."""

    @classmethod
    def speeds(cls) -> Mapping[str, str]:
        """Return what was measured → its figures in words, for ``mgk doctor``; see `mgk_core.model.speeds.measured`."""


@frozen
class Registered:
    """One claim of a type: who made it and which class reads its table (`Spec` for a metric)."""

    plugin: str
    slot: Slot
    type: str
    summary: str
    cls: builtins.type[Spec]


class SpecRegistry:
    """Slot and type → class. Two plugins that claim one type are an error that names both.

    unavailable: plugins that failed to load, for the message about a type that nobody registered.
    """

    def __init__(self, prefer: dict[str, str] | None = None) -> None:
        """:param prefer: ``"slot:type"`` → the plugin to choose (``plugins.prefer``)."""
        self._claims: dict[tuple[str, str], list[Registered]] = {}
        self._prefer = prefer or {}
        self.plugin = "?"  # set by the manager around each plugin's hook call
        self.unavailable: list[str] = []

    def add(self, slot: Slot, type_: str, cls: type[Spec]) -> None:
        """Claim ``type_`` in ``slot``. ``family:*`` claims every type that begins so."""
        if slot not in _TABLES:
            known = nearest(slot, _TABLES)
            raise self._wrong(f"there is no slot {slot!r}{known}")
        if not isinstance(cls, type) or not issubclass(cls, Spec):
            raise self._wrong(f"{slot} {type_!r}: {cls!r} is not a subclass of Spec")
        if slot == "loss" and not issubclass(cls, LossSpec):
            raise self._wrong(f"loss {type_!r}: {cls!r} is not a subclass of LossSpec")
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        self._claim(Registered(self.plugin, slot, type_, summary, cls))

    def add_metric(self, name: str, summary: str = "") -> None:
        """Claim a metric: the plugin's ``mgk_evaluate`` measures the probes that name it."""
        if not isinstance(name, str) or not name:
            raise self._wrong(f"expected the name of a metric, got {name!r}")
        self._claim(Registered(self.plugin, "metric", name, summary, Spec))

    def _claim(self, claim: Registered) -> None:
        self._claims.setdefault((claim.slot, claim.type), []).append(claim)

    def _wrong(self, message: str) -> PluginError:
        return PluginError(
            self.plugin, f"plugin {self.plugin!r}: {message}", "mgk_register_specs"
        )

    def find(self, slot: Slot, type_: str) -> Registered:
        """Return the one claim for a type; `InputError` where there is none or several."""
        family = type_.split(":", maxsplit=1)[0] + ":*"
        claims = self._claims.get((slot, type_)) or self._claims.get((slot, family), [])
        wanted = self._prefer.get(f"{slot}:{type_}")
        if wanted is not None:
            claims = [c for c in claims if c.plugin == wanted]
        if not claims:
            raise InputError(self._unknown(slot, type_))
        if len(claims) > 1:
            names = " and ".join(repr(c.plugin) for c in claims)
            raise InputError(
                f"{slot} type {type_!r} is claimed by the plugins {names};"
                f' choose one with plugins.prefer."{slot}:{type_}" = "{claims[0].plugin}", or --without-plugin'
            )
        return claims[0]

    def _unknown(self, slot: Slot, type_: str) -> str:
        what = "metric" if slot == "metric" else f"{slot} type"
        message = f"unknown {what} {type_!r}{nearest(type_, self.types(slot))}"
        if not self.unavailable:
            return message
        failed = "; ".join(self.unavailable)
        return f"{message}; it may come with a plugin that failed to load: {failed}"

    def types(self, slot: Slot) -> list[str]:
        """Return the types known in a slot, sorted."""
        return sorted(t for s, t in self._claims if s == slot)

    def __iter__(self) -> Iterator[Registered]:
        for claims in self._claims.values():
            yield from claims


@frozen(kw_only=True)
class DeltaSpec(Spec):
    """Base class of what changes a delta on its way into the weights.

    Register a subclass in the slot ``transform`` (a phase may name several; they run in order) or
    in the slot ``merge`` (a merge rule of its own). No hook is needed: the merge engine calls
    `change`, and owns rounding, residuals, undo and the report. A weight that is not a matrix, such
    as a bias, is merged unchanged.
    """

    def change(self, name: str, delta: Tensor) -> Tensor:
        """Return the delta to merge instead of ``delta``.

        Pure: the same bits for the same name, delta and options, so that a run can be rebuilt.

        :param name: the weight's name in the base
        :param delta: (out, in), fp32 or float64, a copy
        :return: finite, of the same shape
        """
        raise NotImplementedError

    def generator(self, name: str, seed: int = 0) -> torch.Generator:
        """Return a CPU generator that depends on ``seed`` and the weight's name, for `change`."""
        import torch

        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))

    @property
    def label(self) -> str:
        """What the ledger calls it: the type with every option."""
        options = {k: v for k, v in asdict(self).items() if k != "type"}
        return f"{self.type}({', '.join(f'{k}={v}' for k, v in options.items())})"


@frozen(kw_only=True)
class LossSpec(Spec):
    """Base class of what a phase minimises: register a subclass in the slot ``loss``.

    `mgk_make_objective` of the same plugin makes the objective of a phase that names it.
    """

    def check(self, data: PhaseData, bundle: Bundle) -> tuple[str, ...]:
        """Check before training that this loss can use a phase's data on this base.

        :return: notes for the user
        :raises InputError: it cannot; the message is reported with the key ``phases.NAME.loss``
        """
        del data, bundle
        return ()


_TABLES = tuple(slot for slot in get_args(Slot) if slot != "metric")

Check = Callable[[Any, "Attribute[Any]", Any], None]
"""A validator of `option`: raises ``ValueError`` with a message that begins with 'expected'."""


def at_least(low: float) -> Check:
    """Validate ``value >= low``; the message gives what was expected."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not value >= low:
            raise ValueError(f"expected a number >= {low:g}, got {value}")

    return check


def above(low: float) -> Check:
    """Validate ``value > low``."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not value > low:
            raise ValueError(f"expected a number > {low:g}, got {value}")

    return check


def between(low: float, high: float) -> Check:
    """Validate ``low <= value <= high``."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}, got {value}")

    return check


def one_of(*options: str) -> Check:
    """Validate membership; the nearest option is offered."""

    def check(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and value not in options:
            raise ValueError(
                f"expected one of {', '.join(options)}, got {value!r}{nearest(str(value), options)}"
            )

    return check


def option(default: Any, *checks: Check, help: str = "") -> Any:  # noqa: A002 - click's word too
    """Declare a key of a spec: default, validators, and the sentence that the docs show."""
    metadata = {"help": help}
    if isinstance(default, (dict, list)):
        made = type(default)
        return field(
            factory=lambda: made(default),
            validator=list(checks) or None,
            metadata=metadata,
        )
    return field(default=default, validator=list(checks) or None, metadata=metadata)


@frozen(kw_only=True)
class ProbeSpec(Spec):
    """What every entry of the table ``probes`` shares; a plugin derives its own class from it."""

    phase: str = option(
        "base",
        help="the phase that teaches what is measured; base: what the original base knows",
    )
    limit: int | None = option(None, at_least(1), help="measure the first N items only")
    when: str = option(
        "always",
        one_of("always", "ends"),
        help="always: in every row of the retention matrix; ends: in the first and the last",
    )


__all__ = [
    "Check",
    "DeltaSpec",
    "LossSpec",
    "ProbeSpec",
    "Registered",
    "Retired",
    "Slot",
    "Spec",
    "SpecRegistry",
    "above",
    "at_least",
    "between",
    "one_of",
    "option",
]
