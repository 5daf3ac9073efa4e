"""The adapter: what VeRA does to each weight."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from attrs import define
from torch import Tensor, nn

from mgk_core.contract.adapter import Factors, Identity, Target, load_in_place
from mgk_core.model.inject import switched_off, take
from mgk_vera.part import Projections, VeraPart


@define(eq=False)
class VeraAdapter:
    """VeRA on a model; made by `mgk_vera.attach`. Its delta is additive, and of low rank: `Factors`."""

    name: str
    shared: Projections
    parts: Mapping[str, VeraPart]
    places: Mapping[str, Target]
    identity: Identity = "exact"
    row_separable: bool = True

    def parameters(self) -> list[nn.Parameter]:
        """Return d and b of each target, in the order of the model's modules."""
        return [p for part in self.parts.values() for p in (part.d, part.b)]

    def targets(self) -> Mapping[str, Target]:
        """Return weight name in the base → where it lives."""
        return self.places

    def factors(self, name: str) -> Factors:
        """Return Λ_d A and Λ_b B with their gradients: retention methods that need a low rank use them."""
        a, b = self.parts[name].factors()
        return Factors(a, b, scale=1.0)

    @torch.no_grad()
    def merged_weight(self, name: str, weight: Tensor, rows: slice | None = None) -> Tensor:
        """Return ``weight + Λ_b B Λ_d A``, or a block ``rows`` of it, in the weight's own precision."""
        a, b = self.parts[name].factors()
        return weight + b.to(weight.dtype)[rows or slice(None)] @ a.to(weight.dtype)

    def disabled(self) -> AbstractContextManager[None]:
        """Run without this adapter inside the block."""
        return switched_off(list(self.parts.values()))

    def detach(self) -> None:
        """Take every part off."""
        for target in self.places.values():
            take(target.module, self.name)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the vectors, and the projections: another torch might draw them differently."""
        state = {"projections/a": self.shared.a, "projections/b": self.shared.b}
        for name, part in self.parts.items():
            state |= {f"{name}/d": part.d.detach(), f"{name}/b": part.b.detach()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over ``state`` in place; an `InputError` names missing, unknown or misshapen keys."""
        load_in_place(self.name, self.state_dict(), state)
