"""An optimizer's state as flat tensors, which safetensors can hold, and back without a rounding.

Names: ``state/<parameter>/<kind>/<key>`` and ``group/<group>/<kind>/<key>``, keys of nested
containers joined by ``/`` (a list's index with ``#``). Kind defines what to turn the tensor back into:
``tensor`` (on the parameter's device), ``host`` (on the CPU), ``int``, ``float``, ``bool``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mgk_core.contract.errors import InputError

_SCALARS: dict[type, torch.dtype] = {
    bool: torch.bool,
    int: torch.int64,
    float: torch.float64,
}
_SET_EACH_STEP = ("lr", "initial_lr")


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of all state, and of the numbers in parameter groups that a step may change."""
    flat: dict[str, Tensor] = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for key, value in _leaves(optimizer.state.get(parameter, {})):
            kind, tensor = _encode(value, parameter.device)
            flat[f"state/{i}/{kind}/{key}"] = tensor
    for i, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if type(value) in _SCALARS and key not in _SET_EACH_STEP:
                flat[f"group/{i}/{type(value).__name__}/{key}"] = _encode(
                    value, torch.device("cpu")
                )[1]
    return flat


def restore(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put a flattened state back, bit for bit; `InputError` where it is another optimizer's."""
    parameters = _parameters(optimizer)
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in flat.items():
        where, index, kind, key = _split(name)
        if where == "group" and int(index) < len(optimizer.param_groups):
            optimizer.param_groups[int(index)][key] = _decode(
                kind, tensor, tensor.device
            )
        elif where == "state" and int(index) < len(parameters):
            device = parameters[int(index)].device
            _insert(
                found.setdefault(int(index), {}), key, _decode(kind, tensor, device)
            )
        else:
            raise InputError(
                f"optimizer state {name!r}: this optimizer has {len(parameters)} parameters in"
                f" {len(optimizer.param_groups)} groups; the state belongs to another adapter"
            )
    optimizer.state.clear()
    for i, state in found.items():
        optimizer.state[parameters[i]] = _lists(state)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, tensor or number) of nested dicts, lists and tuples. None is left out, as absent."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}/#{i}")
    elif value is not None:
        yield path, value


def _encode(value: Any, device: torch.device) -> tuple[str, Tensor]:
    if isinstance(value, Tensor):
        return (
            "tensor" if value.device == device else "host"
        ), value.detach().clone().contiguous()
    if type(value) in _SCALARS:
        return type(value).__name__, torch.tensor(value, dtype=_SCALARS[type(value)])
    raise InputError(
        f"an optimizer keeps a {type(value).__name__} in its state, which safetensors cannot hold;"
        " it can be used only without checkpoints, or with its state made of tensors and numbers"
    )


def _decode(kind: str, tensor: Tensor, device: torch.device) -> Any:
    if kind == "tensor":
        return tensor.detach().clone().to(device)
    if kind == "host":
        return tensor.detach().clone().cpu()
    return tensor.item()


def _split(name: str) -> tuple[str, str, str, str]:
    parts = name.split("/", 3)
    if len(parts) != 4 or not parts[1].isdigit():
        raise InputError(
            f"optimizer state {name!r}: expected state/<parameter>/<kind>/<key>"
        )
    return parts[0], parts[1], parts[2], parts[3]


def _insert(state: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        state = state.setdefault(parent, {})
    state[last] = value


def _lists(value: Any) -> Any:
    """Make lists again of the dicts whose keys are ``#0``, ``#1``, …"""
    if not isinstance(value, dict):
        return value
    inner = {key: _lists(v) for key, v in value.items()}
    if inner and all(key.startswith("#") for key in inner):
        return [inner[f"#{i}"] for i in range(len(inner))]
    return inner
