"""The plainest adapter there is: one trained dense delta a weight. Merge rules are tested with it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Target, base_name, state_of
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import Part
from mgk_core.model.part_adapter import PartAdapter, attach_parts


class DensePart(Part):
    """W + D, with D trained: the module runs with the changed weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.delta = nn.Parameter(
            torch.zeros(weight.shape, dtype=wide, device=weight.device)
        )

    def weights(
        self, module: nn.Module, current: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return the weight that the module uses instead of its own."""
        return {"weight": (current["weight"] + self.delta).to(current["weight"].dtype)}


class DenseAdapter(PartAdapter):
    """W' = W + D on every linear, embedding and convolution layer; made by `attach_dense`."""

    row_separable = True

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return W + D, or a block ``rows`` of it."""
        delta = self.parts[name].get_parameter("delta").detach().to(weight.dtype)
        return weight + delta[rows or slice(None)]


def attach_dense(
    model: nn.Module,
    name: str = "adapter",
    *,
    part: type[DensePart] = DensePart,
    cls: type[DenseAdapter] = DenseAdapter,
) -> DenseAdapter:
    """Attach a dense delta to every weight of a layer; tied weights are refused.

    :param part: what is put on each module
    :param cls: which adapter is made
    """
    layers = _layers(model)
    if len({id(m.weight) for m in layers.values()}) < len(layers):
        raise InputError("two layers share a weight: untie them first")
    places = {}
    for path, module in layers.items():
        full = f"{path}.weight" if path else "weight"
        places[full] = Target(full, module)
    parts = attach_parts(
        model, name, places, lambda target: part(target.parameter.detach())
    )
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
