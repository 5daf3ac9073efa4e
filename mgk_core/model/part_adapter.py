"""An adapter made of parts: the author writes one formula, and the rest of the contract follows.

`Part.weights` defines what a module's weight becomes. The forward pass uses it (unless the part has
a faster `Part.adjust`), and `PartAdapter.merged_weight` uses it too, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Factors, Identity, Target, load_in_place
from mgk_core.model.inject import Part, put, switched_off, take
from mgk_core.model.targets import choose_linear


class PartAdapter:
    """One `Part` for each weight; implements the whole `Adapter` contract from their formulas.

    Subclass it only for what differs: another ``identity``, further state, or a ``merged_weight``
    that works on blocks of rows (then set ``row_separable``, and huge weights merge in less memory).
    """

    identity: Identity = "exact"
    row_separable: bool = False

    def __init__(
        self, name: str, parts: Mapping[str, Part], places: Mapping[str, Target]
    ) -> None:
        """:param parts, places: weight name in the base → its part, and where the weight is."""
        self.name, self.parts, self.places = name, dict(parts), dict(places)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parts' parameters in the order of the targets; a shared one appears once."""
        found: dict[int, nn.Parameter] = {}
        for part in self.parts.values():
            for parameter in part.parameters():
                found.setdefault(id(parameter), parameter)
        return list(found.values())

    def targets(self) -> dict[str, Target]:
        """Return weight name in the base → where it is."""
        return dict(self.places)

    def factors(self, name: str) -> Factors | None:
        """Return the low-rank factors of a weight's delta, where its part has them."""
        return self.parts[name].factors()

    @torch.no_grad()
    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return what `Part.weights` makes of ``weight`` in the precision given. All rows at once.

        :param rows: never given, because ``row_separable`` is False
        """
        target = self.places[name]
        own = dict(target.module.named_parameters(recurse=False))
        changed = self.parts[name].weights(
            target.module, {**own, target.attribute: weight}
        )
        return changed.get(target.attribute, weight)

    def disabled(self) -> AbstractContextManager[None]:
        """Run without this adapter inside the block."""
        return switched_off(list(self.parts.values()))

    def detach(self) -> None:
        """Take every part off."""
        for target in self.places.values():
            take(target.module, self.name)

    def state_dict(self) -> dict[str, Tensor]:
        """Return every part's own state, by ``weight/name``; not copies."""
        state: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            for key, tensor in part.state_dict().items():
                state[f"{name}/{key}"] = tensor
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``state`` in place; an `InputError` names missing, unknown or misshapen keys."""
        load_in_place(self.name, self.state_dict(), state)


def linear_targets(
    model: nn.Module, patterns: tuple[str, ...], exclude: tuple[str, ...] = ()
) -> dict[str, Target]:
    """Return weight name → `Target` of the linear modules that the patterns mean (`choose_linear`).

    :raises InputError: a pattern that matches nothing, or a target whose weight is tied
    """
    chosen = choose_linear(model, patterns, exclude)
    names = {path: f"{path}.weight" if path else "weight" for path in chosen}
    return {names[path]: Target(names[path], module) for path, module in chosen.items()}


def attach_parts(
    model: nn.Module,
    name: str,
    targets: Mapping[str, Target],
    make: Callable[[Target], Part],
) -> dict[str, Part]:
    """Make a part for each target and put it on the target's module; return them by weight name.

    All parts are made before the first is put on, and all come off again where one cannot be, so
    the model is whole in any case. A part gets its weight's device and its module's training mode.
    """
    parts = {weight: make(target) for weight, target in targets.items()}
    placed: list[nn.Module] = []
    try:
        for weight, part in parts.items():
            target = targets[weight]
            part.to(target.parameter.device)
            part.train(target.module.training)
            put(target.module, name, part)
            placed.append(target.module)
    except BaseException:
        for module in placed:
            take(module, name)
        raise
    return parts


__all__ = ["PartAdapter", "attach_parts", "linear_targets"]
