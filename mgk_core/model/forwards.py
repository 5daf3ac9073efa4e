"""What a module's own forward computes: whether an adapter's part may rely on its class."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain_forward(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Return whether the module computes what ``cls`` computes, apart from rounding.

    A class whose forward does the same in another precision declares ``computes = nn.Linear``.
    """
    own = next(
        c
        for c in type(module).__mro__
        if "forward" in c.__dict__ and not c.__name__.startswith("_Adapted")
    )
    return own.__dict__.get("computes", own) is cls


def type_named(module: nn.Module, name: str) -> bool:
    """Recognise a class by its name, so that its library need not be imported."""
    return any(c.__name__ == name for c in type(module).__mro__)


def is_scaled_embedding(module: nn.Module) -> bool:
    """Recognise transformers' ``…ScaledWordEmbedding``: the embedding times ``embed_scale``."""
    return any(c.__name__.endswith("ScaledWordEmbedding") for c in type(module).__mro__)


def embed_scale(module: nn.Module, output: Tensor) -> Tensor:
    """Return what a scaled embedding multiplies by, in the output's dtype."""
    scale = module.embed_scale
    return (scale if isinstance(scale, Tensor) else torch.tensor(scale)).to(output)


__all__ = ["embed_scale", "is_scaled_embedding", "plain_forward", "type_named"]
