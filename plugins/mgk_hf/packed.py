"""One module whose weight bitsandbytes has quantized: dequantize, restore and requantize it."""

from __future__ import annotations

import copy
from typing import Any

from attrs import field, frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import base_name
from mgk_core.model.inject import adapted_class, is_adapted
from mgk_hf.quantized import is_packed, pack

_BESIDE = ("quant_state", "state")
"""What bitsandbytes keeps on the module itself: of 4 bits a reference to the weight's own, of 8 the scales."""


@frozen(eq=False)
class Packed:
    """One quantized module as it was: what is put back when a merge is undone. name: of its weight, in the base."""

    name: str
    module: nn.Module
    cls: type[nn.Module]
    weight: nn.Parameter
    beside: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Packed:
        """Note a module."""
        weight = module._parameters["weight"]  # noqa: SLF001 - the Parameter itself, with what bitsandbytes hangs on it
        assert weight is not None  # noqa: S101 - it is what makes the module a packed one
        beside = {
            key: module.__dict__[key] for key in _BESIDE if key in module.__dict__
        }
        whole = f"{name}.weight"
        return cls(base_name(whole) or whole, module, type(module), weight, beside)

    @property
    def kind(self) -> str:
        """How it is packed: ``nf4``, ``fp4``, or ``int8``, whose products round activations too."""
        state: Any = getattr(self.weight, "quant_state", None)
        return "int8" if state is None else str(state.quant_type)

    def fill(self, weight: Tensor) -> None:
        """Make a plain linear layer of the module, with this weight. Parts of adapters stay on it."""
        self.module.__class__ = (
            adapted_class(nn.Linear) if is_adapted(self.module) else nn.Linear
        )
        self._set(nn.Parameter(weight, requires_grad=False))

    def put_back(self) -> None:
        """Make the quantized module again."""
        self.module.__class__ = self.cls
        self.module.__dict__.update(self.beside)
        self._set(self.weight)

    def fill_packed(self, weight: Tensor) -> None:
        """Make a quantized module of other numbers (out, in), packed as these were."""
        self.put_back()
        fresh = pack(weight, self.module)
        if self.kind == "int8":
            self.module.__dict__["state"] = state = copy.copy(self.beside["state"])
            state.CB, state.SCB = (
                None,
                None,
            )  # the first forward pass takes them off the weight
        else:
            self.module.__dict__["quant_state"] = fresh.quant_state
        self._set(fresh)

    def _set(self, weight: nn.Parameter) -> None:
        self.module._parameters["weight"] = weight  # noqa: SLF001 - past bitsandbytes' own setters


def packed_in(model: nn.Module) -> list[Packed]:
    """Note every packed module of a model."""
    return [
        Packed.of(name, module)
        for name, module in model.named_modules()
        if is_packed(module)
    ]
