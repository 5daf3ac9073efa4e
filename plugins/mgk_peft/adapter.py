"""The adapter: one of PEFT's tuners on a model, behind mgk's contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Identity, Target, base_name, check_state
from mgk_peft.files import read_into, write
from mgk_peft.layer import merged, own_tensors, set_tensor
from mgk_peft.targets import is_transposed


@frozen(eq=False)
class Placed:
    """One of PEFT's layers in the tree. parent, child: its parent module and its attribute there. name: of the module that it wraps."""

    name: str
    parent: nn.Module
    child: str
    layer: Any


def take_off(placed: Iterable[Placed]) -> None:
    """Put the base's own modules back in their places."""
    for place in placed:
        setattr(place.parent, place.child, place.layer.base_layer)


class PeftAdapter:
    """Any of PEFT's tuners on a model; made by `mgk_peft.attach`.

    Keys of ``state_dict``: the wrapped module's name in the base, a slash, and the tensor's name in
    PEFT's layer. What several layers share is listed once, under the first of them.
    """

    row_separable = (
        False  # PEFT says what becomes of a whole weight, never of some of its rows
    )

    def __init__(
        self,
        name: str,
        config: Any,
        tuner: Any,
        placed: Sequence[Placed],
        changes: Mapping[str, Sequence[str]],
        identity: Identity,
    ) -> None:
        """:param changes: module name → the parameters of it that merging changes; tuner: holds what layers share."""
        self.name, self.config, self.tuner = name, config, tuner
        self.identity: Identity = identity
        self._placed = tuple(placed)
        self._trained = [
            t
            for _, t in self._tensors()
            if isinstance(t, nn.Parameter) and t.requires_grad
        ]
        self._homes: dict[str, tuple[Any, str]] = {}
        for place in placed:
            # Biases first: what a tuner adds to one may depend on the weight (GLoRA), and a merge goes in this order.
            for attribute in sorted(
                changes[place.name],
                key=lambda a: place.layer.base_layer.get_parameter(a).dim(),
            ):
                self._homes[base_name(f"{place.name}.{attribute}") or attribute] = (
                    place.layer,
                    attribute,
                )

    @property
    def layers(self) -> list[Any]:
        """PEFT's layers, in the model's order."""
        return [place.layer for place in self._placed]

    def parameters(self) -> list[nn.Parameter]:
        """Return what PEFT trains, in the model's order; what layers share is listed once."""
        return list(self._trained)

    def targets(self) -> dict[str, Target]:
        """Return weight (and bias) name in the base → its location."""
        result = {}
        for name, (layer, attribute) in self._homes.items():
            path, _, last = attribute.rpartition(".")
            owner = layer.base_layer.get_submodule(path)
            turned = is_transposed(owner) and owner.get_parameter(last).dim() == 2
            result[name] = Target(name, owner, last, turned)
        return result

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return what PEFT's merge makes of ``weight``, in its dtype (fp32 or float64); nothing is changed."""
        layer, attribute = self._homes[name]
        result = merged(layer, {attribute: weight})[attribute].to(weight.dtype)
        return result if rows is None else result[rows]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the base's own modules inside the block.

        PEFT's ``enable_adapters`` would also switch ``requires_grad`` of every parameter, those too
        that were frozen on purpose; so its flag alone is set.
        """
        before = [layer._disable_adapters for layer in self.layers]  # noqa: SLF001
        try:
            for layer in self.layers:
                layer._disable_adapters = True  # noqa: SLF001
            yield
        finally:
            for layer, was in zip(self.layers, before, strict=True):
                layer._disable_adapters = was  # noqa: SLF001

    def detach(self) -> None:
        """Put the base's own modules back in their places."""
        take_off(self._placed)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors of the adapter by ``module/tensor``; not copies."""
        return {name: tensor.detach() for name, tensor in self._tensors()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``state`` in place; an `InputError` names missing, unknown or misshapen keys."""
        own = dict(self._tensors())
        check_state(self.name, own, state)
        for place in self._placed:
            for name, _ in list(own_tensors(place.layer)):
                key = _key(place, name)
                if key in own:
                    set_tensor(place.layer, name, state[key])

    def save(self, directory: Path) -> None:
        """Write PEFT's own files, which `PeftModel.from_pretrained` loads on the same base."""
        write(self.tuner, self.config, self.state_dict(), directory)

    def load(self, directory: Path) -> None:
        """Load what `save` wrote for an adapter of the same configuration."""
        read_into(self, self.tuner, self.config, directory)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each of the adapter's tensors once."""
        seen: set[int] = set()
        for place in self._placed:
            for name, tensor in own_tensors(place.layer):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield _key(place, name), tensor


def _key(place: Placed, name: str) -> str:
    return f"{base_name(place.name) or place.name}/{name}"
