"""One of PEFT's layers: its tensors, what it makes of a weight, and what it does to an output.

PEFT merges in place. Here a copy of the layer merges, one that holds the weight in question and
shares the adapter's own tensors, so that asking changes nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import SLOT, Identity

PEFT_NAME = "default"
"""What the adapter is called inside PEFT, whatever its name in mgk."""

_WIDE, _NARROW = 1e-3, 3e-2
"""How far merged may be from live in one layer, in fp32 and where products are bf16. A fault is far above."""

_CLOSE = 1e-5  # an untrained layer's relative error below which the whole model's stays below the core's 1e-3


def base_parameters(layer: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of the module that ``layer`` wraps, by their names in it."""
    return {
        n: p for n, p in layer.base_layer.named_parameters() if SLOT not in n.split(".")
    }


def own_tensors(layer: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the layer, tensor) for all of the adapter's tensors: parameters, buffers, and those
    that PEFT keeps in plain dictionaries by the adapter's name (such as the indices of a sparse delta).
    """
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if not name.startswith("base_layer."):
            yield name, tensor
    for attribute, held in _dictionaries(layer):
        yield f"{attribute}.{PEFT_NAME}", held[PEFT_NAME]


def set_tensor(layer: Any, name: str, value: Tensor) -> None:
    """Load one of `own_tensors`."""
    for attribute, held in _dictionaries(layer):
        if name == f"{attribute}.{PEFT_NAME}":
            held[PEFT_NAME].copy_(value)
            return
    path, _, last = name.rpartition(".")
    with torch.no_grad():
        getattr(layer.get_submodule(path), last).copy_(value)


def _dictionaries(layer: Any) -> list[tuple[str, dict[str, Tensor]]]:
    return [
        (attribute, held)
        for attribute, held in vars(layer).items()
        if isinstance(held, dict)
        and not attribute.startswith("_")
        and isinstance(held.get(PEFT_NAME), Tensor)
    ]


@torch.no_grad()
def merged(layer: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what merging makes of the base's parameters, those in ``given`` instead of its own.

    The others are brought to the same dtype, since RoAd multiplies its rotation with weight and bias.
    """
    shared = {id(tensor): tensor for _, tensor in own_tensors(layer)}
    wide = next(iter(given.values())).dtype
    own = base_parameters(layer).items()
    weights = {n: p.to(wide) if p.is_floating_point() else p for n, p in own}
    twin = _twin(layer, {**weights, **given}, shared)
    _merge(twin)
    return {
        name: parameter.detach() for name, parameter in base_parameters(twin).items()
    }


def _twin(
    layer: Any, weights: Mapping[str, Tensor], shared: Mapping[int, Tensor]
) -> Any:
    """Return a copy in evaluation mode with copies of ``weights`` for the base's, and tensors that it shares."""
    memo: dict[int, Any] = dict(shared)
    for name, parameter in base_parameters(layer).items():
        memo[id(parameter)] = nn.Parameter(
            weights[name].detach().clone(), requires_grad=False
        )
    return copy.deepcopy(layer, memo).eval()


def _merge(twin: Any) -> None:
    twin.merge(safe_merge=False, adapter_names=[PEFT_NAME])


@torch.no_grad()
def changed_by_merging(layer: Any) -> list[str]:
    """Return the names of the base's parameters that a trained adapter of this kind changes.

    Tried on a copy with noise on the adapter's parameters.

    :raises ValueError: merged, the copy computes something else than before (PEFT's layers for convolutions
        pad with zeros, whatever the base pads with, for one)
    """
    before = {n: p.detach().float() for n, p in base_parameters(layer).items()}
    twin = _twin(layer, before, {})
    _shake(twin)
    x = _sample(twin.base_layer)
    live = None if x is None else twin(x)
    _merge(twin)
    after = base_parameters(twin)
    if live is not None:
        base = copy.deepcopy(
            twin.base_layer
        )  # without what it may have cached of the weight as it was
        error = float((base(x) - live).norm() / live.norm())
        if not error <= (_NARROW if hasattr(twin.base_layer, "computes") else _WIDE):
            raise ValueError(
                f"in PEFT, merged differs from live by {error:.2g} (relative 2-norm)"
            )
    return [n for n, p in before.items() if not torch.equal(after[n], p)]


def kind_of(layer: Any) -> tuple[Any, ...]:
    """Return what layers have in common that merge alike: classes and switches."""
    switches: list[tuple[str, str]] = []
    for name, value in (*vars(layer).items(), *vars(layer.base_layer).items()):
        own = value.get(PEFT_NAME) if isinstance(value, dict) else value
        if isinstance(own, (bool, str)) and name != "training":
            switches.append((name, str(own)))
    return (
        type(layer),
        type(layer.base_layer),
        tuple(base_parameters(layer)),
        tuple(sorted(switches)),
    )


def _shake(layer: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        if not name.startswith("base_layer.") and parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=0.1)


@torch.no_grad()
def identity_of(layer: Any) -> Identity:
    """Measure what the untrained layer does to the output of the module that it wraps.

    Exact: not a bit of the output moves, and what the adapter adds is zero (what multiplies by one
    here may round differently in another shape).
    """
    x = _sample(layer.base_layer)
    if x is None:
        return "none"
    was_training = layer.training
    layer.eval()
    try:
        expected, found = layer.base_layer(x), layer(x)
    finally:
        layer.train(was_training)
    if torch.equal(expected, found) and _adds_zero(layer):
        return "exact"
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    return "close" if bool(error <= _CLOSE) else "none"


def _adds_zero(layer: Any) -> bool:
    """Return whether PEFT can compute the layer's effect as a delta, and that delta is zero."""
    ask = getattr(layer, "get_delta_weight", None)
    if ask is None or _required(ask) != 1:
        return False  # MiSS wants the weight as well: what it returns is no delta
    delta = ask(PEFT_NAME)
    return isinstance(delta, Tensor) and not bool(
        delta.detach().to_dense().any() if delta.is_sparse else delta.any()
    )


def _required(function: Callable[..., Any]) -> int:
    return sum(
        p.default is p.empty for p in inspect.signature(function).parameters.values()
    )


def _sample(base: nn.Module) -> Tensor | None:
    """Return an input for a module of a known kind, else None."""
    generator, weight = torch.Generator().manual_seed(0), getattr(base, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(base, nn.Embedding):
        return torch.arange(min(5, base.num_embeddings), device=weight.device)
    if isinstance(base, nn.modules.conv._ConvNd):  # noqa: SLF001 - torch has no public name for all of them
        sides = [
            d * (k - 1) + 3
            for k, d in zip(base.kernel_size, base.dilation, strict=True)
        ]
        shape = (2, base.in_channels, *sides)
    elif isinstance(base, nn.Linear) or weight.dim() == 1:
        shape = (5, weight.shape[-1])
    elif weight.dim() == 2:
        shape = (5, weight.shape[0])  # transformers' Conv1D
    else:
        return None
    return torch.randn(shape, generator=generator).to(weight)
