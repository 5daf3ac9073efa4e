"""Whether a model has changed since it was last measured."""

from __future__ import annotations

from torch import nn

from mgk_core.model.inject import parts_of


def version_of(model: nn.Module) -> tuple[int, ...]:
    """Return a value that changes whenever a weight is written or an adapter is switched.

    Each weight's address and version, and which adapters are enabled.
    """
    weights = list[int]()
    for parameter in model.parameters():
        weights += (parameter.data_ptr(), parameter._version)  # noqa: SLF001 - torch has no other
    switches = [
        int(part.enabled) for module in model.modules() for part in parts_of(module)
    ]
    return (*weights, *switches)


__all__ = ["version_of"]
