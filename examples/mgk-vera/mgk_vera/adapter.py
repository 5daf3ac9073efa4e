"""Putting VeRA on a model, and what its state is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mgk_core.contract.adapter import Target
from mgk_core.model.inject import Part
from mgk_core.model.part_adapter import PartAdapter, attach_parts, linear_targets
from mgk_vera.part import Projections, VeraPart
from mgk_vera.spec import VeraSpec


class VeraAdapter(PartAdapter):
    """VeRA on a model. Its delta is low-rank (`Part.factors`), so nothing else has to be written."""

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Part],
        places: Mapping[str, Target],
        shared: Projections,
    ) -> None:
        super().__init__(name, parts, places)
        self.shared = shared

    def state_dict(self) -> dict[str, Tensor]:
        """Return the vectors, and the projections: another torch might draw them differently."""
        shared = {"projections/a": self.shared.a, "projections/b": self.shared.b}
        return shared | super().state_dict()


def attach(model: nn.Module, spec: VeraSpec, name: str) -> VeraAdapter:
    """Attach VeRA to the linear modules that ``spec`` names. Nothing is changed where it fails.

    :raises InputError: a pattern that matches nothing, or a target whose weight is tied
    """
    places = linear_targets(model, spec.targets, spec.exclude)
    shapes = [target.parameter.shape for target in places.values()]
    rows, cols = max(s[0] for s in shapes), max(s[1] for s in shapes)
    shared = Projections(spec.rank, rows, cols, spec.projection_seed)

    def make(target: Target) -> VeraPart:
        return VeraPart(shared, target.parameter, spec.d_initial)

    return VeraAdapter(name, attach_parts(model, name, places, make), places, shared)
