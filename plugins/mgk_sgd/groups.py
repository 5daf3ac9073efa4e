"""Torch's parameter groups: which of an adapter's parameters have a rate or a decay of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.errors import InputError
from mgk_sgd.specs import OptimizerSpec

SHOWN = 12
"""How many names an error lists."""


@frozen
class Rates:
    """What the parameters of one group share."""

    lr: float
    weight_decay: float


def groups_of(adapter: Adapter, spec: OptimizerSpec) -> list[dict[str, Any]]:
    """Return the groups of the parameters that require gradients.

    The group with the table's own ``lr`` and ``weight_decay`` is the first, where it has any
    parameter: its rate is the one that is logged.

    :raises InputError: nothing can be trained, or a pattern or ``lr_ratio`` matches no parameter
    """
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(
            f"adapter {adapter.name!r} has no parameter that requires a gradient; nothing can be trained"
        )
    own = Rates(spec.lr, spec.weight_decay)
    found: dict[Rates, list[nn.Parameter]] = {own: []}
    if spec.lr_ratio is None and not spec.groups:
        found[own] = parameters
    else:
        names = parameter_names(adapter)
        _check(names, spec)
        for name, parameter in zip(names, adapter.parameters(), strict=True):
            if parameter.requires_grad:
                found.setdefault(_rates(name, spec), []).append(parameter)
    return [
        {"params": members, "lr": rates.lr, "weight_decay": rates.weight_decay}
        for rates, members in found.items()
        if members
    ]


def parameter_names(adapter: Adapter) -> list[str]:
    """Return the key in ``state_dict`` of each of the adapter's parameters, in their order.

    :raises InputError: the state holds copies, so that parameters cannot be told apart by name
    """
    known = {_place(t): key for key, t in adapter.state_dict().items()}
    names = [known.get(_place(p)) for p in adapter.parameters()]
    if None in names:
        raise InputError(
            f"adapter {adapter.name!r}: its state_dict() holds copies of its parameters, so they have"
            " no names here; remove optimizer.groups and optimizer.lr_ratio"
        )
    return [name for name in names if name is not None]


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where a tensor is in memory, and its shape: the same for a parameter and a view of all of it."""
    return tensor.data_ptr(), tuple(tensor.shape)


def _rates(name: str, spec: OptimizerSpec) -> Rates:
    """Return the rates of one parameter: the first pattern that matches counts."""
    lr = spec.lr
    if spec.lr_ratio is not None and is_b(name):
        lr *= spec.lr_ratio
    for pattern, values in spec.groups.items():
        if matches(pattern, name):
            return Rates(
                values.get("lr", lr), values.get("weight_decay", spec.weight_decay)
            )
    return Rates(lr, spec.weight_decay)


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern means a parameter: a glob on its name, or the name's last part.

    A parameter is called as in ``state_dict``: ``layers.0.q_proj.weight/b``. ``lora_A`` and
    ``lora_B`` mean ``a`` and ``b``, which is how PEFT calls them.
    """
    for called in (name, _as_peft(name)):
        if fnmatch.fnmatchcase(called, pattern):
            return True
        if called.endswith(("/" + pattern, "." + pattern)):
            return True
    return False


def is_b(name: str) -> bool:
    """Return whether a name is that of a LoRA's B, the factor that starts at zero."""
    return matches("lora_B", name) or matches("*.lora_B.*", name)


def _as_peft(name: str) -> str:
    """Return mgk's ``layers.0.q_proj.weight/b`` as ``layers.0.q_proj.lora_B``."""
    path, _, part = name.rpartition("/")
    if part not in ("a", "b"):
        return name.replace("/", ".")
    return f"{path.removesuffix('.weight')}.lora_{part.upper()}"


def _check(names: Sequence[str], spec: OptimizerSpec) -> None:
    """Refuse what would have no effect."""
    listed = ", ".join(names[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    for pattern in spec.groups:
        if not any(matches(pattern, name) for name in names):
            raise InputError(
                f"groups: {pattern!r} matches no parameter; this adapter has {listed}{more}"
            )
    if spec.lr_ratio is not None and not any(map(is_b, names)):
        raise InputError(
            f"lr_ratio: this adapter has no B that starts at zero; it has {listed}{more}"
        )
