"""What sits on a module: deltas of its parameters, whole or of some rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from mgk_core.model.forwards import embed_scale, is_scaled_embedding, plain_forward
from mgk_core.model.inject import Part


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a weight of ``dtype`` is trained and summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class FullPart(Part):
    """W + D for some parameters of a module.

    Slots of ``nn.Module`` cannot hold a dot, so deltas are numbered in the order of ``attributes``.
    """

    on_weights = True

    def __init__(self, deltas: Mapping[str, nn.Parameter]) -> None:
        """:param deltas: attribute of the module → D, of the parameter's shape."""
        super().__init__()
        self.attributes = tuple(deltas)
        self.held = nn.ParameterList(deltas.values())

    def weights(
        self, module: nn.Module, current: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return each parameter with its delta added, differentiable, in its own dtype."""
        changed: dict[str, Tensor] = {}
        for attribute, delta in zip(self.attributes, self.held, strict=True):
            weight = current[attribute]
            changed[attribute] = (weight + delta).to(weight.dtype)
        return changed


class RowsPart(Part):
    """W + D for some rows of a module's ``weight``.

    rows: (n, width), D's rows. ids: (n,), ascending.
    """

    rows: nn.Parameter
    ids: Tensor

    def __init__(self, rows: nn.Parameter, ids: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("ids", ids, persistent=False)

    def weights(
        self, module: nn.Module, current: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return the whole table with the delta added, differentiable, in its own dtype."""
        weight = current["weight"]
        old = weight[self.ids]
        new = (old + self.rows).to(weight.dtype)
        return {"weight": weight.index_copy(0, self.ids, new)}


class TablePart(RowsPart):
    """Rows of an embedding: those of the batch's ids are looked up, the table is not copied."""

    place: Tensor

    def __init__(self, rows: nn.Parameter, ids: Tensor, count: int) -> None:
        """:param count: rows of the whole table."""
        super().__init__(rows, ids)
        place = torch.full((count,), -1, dtype=torch.int64, device=ids.device)
        place[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("place", place, persistent=False)

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: ids (...)   output: (..., width)."""
        place = self.place[args[0]]
        delta = F.embedding(place.clamp(min=0), self.rows)
        if is_scaled_embedding(module):
            delta = delta * embed_scale(module, output)
        return torch.where((place >= 0)[..., None], output + delta, output).to(
            output.dtype
        )


class HeadPart(RowsPart):
    """Rows of a linear map: some of its outputs get h Dᵀ."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: (..., in)   output: (..., out)."""
        more = F.linear(args[0].to(self.rows.dtype), self.rows)
        return output.index_add(-1, self.ids, more.to(output.dtype))


def rows_part(module: nn.Module, rows: nn.Parameter, ids: Tensor) -> RowsPart | None:
    """Return the part for rows of this module's ``weight``; None where it is not a table."""
    if isinstance(module, nn.Embedding):
        if plain_forward(module, nn.Embedding) or is_scaled_embedding(module):
            return TablePart(rows, ids, module.num_embeddings)
        return RowsPart(rows, ids)
    if isinstance(module, nn.Linear):
        plain = plain_forward(module, nn.Linear)
        return HeadPart(rows, ids) if plain else RowsPart(rows, ids)
    return None
