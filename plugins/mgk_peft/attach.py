"""Putting one of PEFT's tuners on a model, in such a way that nothing of the base changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Identity
from mgk_core.contract.errors import InputError
from mgk_peft.adapter import PeftAdapter, Placed, take_off
from mgk_peft.layer import PEFT_NAME, changed_by_merging, identity_of, kind_of
from mgk_peft.library import Tuner, find_tuner, make_config
from mgk_peft.spec import PeftSpec
from mgk_peft.targets import as_regex, choose

_REFUSALS = (
    ValueError,
    TypeError,
    NotImplementedError,
    AttributeError,
    KeyError,
    RuntimeError,
    AssertionError,
)
"""What PEFT raises where a value, a module or a combination does not suit one of its tuners."""


def attach(model: nn.Module, spec: PeftSpec, name: str) -> PeftAdapter:
    """Attach the tuner that ``spec`` names. Nothing is changed where it fails.

    :raises InputError: unknown target or option, tied or packed weight, a tuner that cannot merge,
        or one that would change the base itself
    """
    if any(hasattr(m, "base_layer") for m in model.modules()):
        raise InputError(
            "one of PEFT's adapters is attached to this model already; merge or detach it first"
        )
    tuner = find_tuner(spec.type)
    chosen = choose(model, spec.targets, spec.exclude)
    config = make_config(spec, as_regex(list(chosen)))
    flags = [(p, p.requires_grad) for p in model.parameters()]
    kept = {id(p): p.detach().clone() for m in chosen.values() for p in m.parameters()}
    placed: list[Placed] = []
    try:
        made = _inject(model, tuner, config)
        placed = _placed(model)
        _check_base(spec, model, chosen, kept, placed)
        changes = _changes(spec, placed)
        identity = _identity(spec, model, placed)
    except BaseException:
        take_off(placed or _placed(model))
        for parameter, _ in flags:
            if id(parameter) in kept:
                parameter.data.copy_(kept[id(parameter)])
        raise
    finally:
        model.__dict__.pop("peft_config", None)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return PeftAdapter(name, config, made, placed, changes, identity)


def _inject(model: nn.Module, tuner: Tuner, config: Any) -> Any:
    try:
        made = tuner.model(model, config, PEFT_NAME)
        trains = {n: p.requires_grad for n, p in model.named_parameters()}
        made._cast_adapter_dtype(PEFT_NAME)  # noqa: SLF001 - what get_peft_model does: adapters are fp32 on bf16 bases
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                trains[name]
            )  # the cast makes new parameters, which forget it
        return made
    except _REFUSALS as error:
        raise _said(f"PEFT cannot put {tuner.name} on these modules", error) from error


def _said(what: str, error: Exception) -> Exception:
    """Return PEFT's objection as bad input; being out of memory is none."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    return InputError(f"{what}: {error}")


def _placed(model: nn.Module) -> list[Placed]:
    """Find PEFT's layers; each replaces the module that it wraps, in the train or eval mode of that module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = []
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer) and hasattr(layer, "base_layer"):
            parent, _, child = path.rpartition(".")
            layer.train(layer.base_layer.training)
            layer.register_forward_hook(_no_shortcut)
            found.append(Placed(path, model.get_submodule(parent), child, layer))
    return found


def _no_shortcut(module: nn.Module, args: Any, output: Any) -> None:
    """Do nothing. ``nn.TransformerEncoderLayer`` reads weights past forward methods unless a hook is inside."""


def _check_base(
    spec: PeftSpec,
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    kept: Mapping[int, Tensor],
    placed: list[Placed],
) -> None:
    wrapped = {id(p.layer.base_layer) for p in placed}
    left = [n for n, m in chosen.items() if id(m) not in wrapped]
    if left or len(wrapped) != len(chosen):
        raise InputError(
            f"type {spec.type!r} does not adapt {', '.join(left[:5]) or 'the chosen modules one by one'}"
        )
    for name, module in chosen.items():
        for parameter in module.parameters():
            if not torch.equal(parameter, kept[id(parameter)]):
                raise InputError(
                    f"target {name}: with these options {spec.type!r} changes the base's own weight when it is attached;"
                    " choose another initialisation (type = 'lora' has init = 'pissa' that leaves the base alone)"
                )


def _changes(spec: PeftSpec, placed: list[Placed]) -> dict[str, list[str]]:
    """Return module name → which of its parameters merging changes, tried on a copy of each kind of layer."""
    known: dict[Any, list[str]] = {}
    for place in placed:
        kind = kind_of(place.layer)
        if kind in known:
            continue
        try:
            known[kind] = changed_by_merging(place.layer)
        except _REFUSALS as error:
            raise _said(
                f"type {spec.type!r} cannot be merged into {place.name}", error
            ) from error
        if not known[kind]:
            raise InputError(
                f"type {spec.type!r} cannot be merged into {place.name}: merging changes nothing there"
            )
    return {p.name: known[kind_of(p.layer)] for p in placed}


def _identity(spec: PeftSpec, model: nn.Module, placed: list[Placed]) -> Identity:
    """Return the weakest promise of all layers."""
    try:
        found = {identity_of(place.layer) for place in placed}
    except _REFUSALS as error:
        raise _said(
            f"type {spec.type!r} does not run in {type(model).__name__} without changes",
            error,
        ) from error
    fused = any(
        isinstance(m, nn.TransformerEncoderLayer) for m in model.modules()
    )  # its fused kernel rounds otherwise
    if "none" in found:
        return "none"
    return "close" if "close" in found or fused else "exact"
