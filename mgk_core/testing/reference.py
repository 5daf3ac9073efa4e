"""The plainest adapter there is: one trained dense delta a weight. Merge rules are tested with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Identity, Target, base_name, state_of
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import Part, put, switched_off, take


class DensePart(Part):
    """W + D, with D trained: the module runs with the changed weight."""

    on_weights = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.delta = nn.Parameter(torch.zeros(weight.shape, dtype=wide, device=weight.device))

    def weights(self, module: nn.Module, current: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weight that the module uses instead of its own."""
        return {"weight": (current["weight"] + self.delta).to(current["weight"].dtype)}


class DenseAdapter:
    """W' = W + D on every linear, embedding and convolution layer; made by `attach_dense`."""

    identity: Identity = "exact"
    row_separable = True

    def __init__(
        self, name: str, parts: Mapping[str, DensePart], places: Mapping[str, Target]
    ) -> None:
        self.name, self.parts, self.places = name, dict(parts), dict(places)

    def parameters(self) -> list[nn.Parameter]:
        """Return D of each target, in the order of the model's modules."""
        return [part.delta for part in self.parts.values()]

    def targets(self) -> dict[str, Target]:
        """Return weight name in the base → where it lives."""
        return dict(self.places)

    def merged_weight(self, name: str, weight: Tensor, rows: slice | None = None) -> Tensor:
        """Return W + D, or a block ``rows`` of it."""
        delta = self.parts[name].delta.detach().to(weight.dtype)
        return weight + delta[rows or slice(None)]

    def disabled(self) -> AbstractContextManager[None]:
        """Run without this adapter inside the block."""
        return switched_off(list(self.parts.values()))

    def detach(self) -> None:
        """Take every part off."""
        for target in self.places.values():
            take(target.module, self.name)

    def state_dict(self) -> dict[str, Tensor]:
        """Return D of each target, by ``weight/delta``."""
        return {f"{name}/delta": part.delta.detach() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over ``state`` in place; an `InputError` where keys or shapes differ."""
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise InputError(
                f"adapter {self.name!r}: the state does not fit; expected {sorted(own)}"
            )
        for key, tensor in own.items():
            tensor.copy_(state[key])


def attach_dense(
    model: nn.Module,
    name: str = "adapter",
    *,
    part: type[DensePart] = DensePart,
    cls: type[DenseAdapter] = DenseAdapter,
) -> DenseAdapter:
    """Attach a dense delta to every weight of a layer; what is tied is refused.

    :param part: what sits on each module
    :param cls: which adapter is made
    """
    own = _layers(model)
    ids = [id(m.weight) for m in own.values()]
    if len(set(ids)) < len(ids):
        raise InputError("two layers share a weight: untie them first")
    parts, places = {}, {}
    for path, module in own.items():
        weight = module.weight
        assert isinstance(weight, nn.Parameter)  # noqa: S101 - `_layers` looked
        full = f"{path}.weight" if path else "weight"
        parts[full], places[full] = part(weight.detach()), Target(full, module)
        put(module, name, parts[full])
    adapter = cls(name, parts, places)
    state_of(model).adapters.append(adapter)
    return adapter


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)  # noqa: SLF001 - what all convolutions share
    named = (
        (base_name(n) if n else "", m)
        for n, m in model.named_modules()
        if type(m).__name__ != "NonDynamicallyQuantizableLinear"
    )
    return {n: m for n, m in named if n is not None and isinstance(m, kinds)}
