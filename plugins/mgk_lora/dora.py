"""DoRA's unmerged output, from the module's own output rather than from a dense weight.

With c = m / ‖W + ΔW‖ per output, x W'ᵀ = x Wᵀ + (c − 1) · x Wᵀ + c · scale · (x Aᵀ) Bᵀ: exactly the
base's output where c = 1 and B = 0. W is the weight as earlier parts of the same module leave it,
so that merging adapters in the order of attaching is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.model.inject import Part, effective_weights, parts_of
from mgk_lora.parts import (
    ConvPart,
    EmbeddingPart,
    LinearPart,
    LoraPart,
    low_rank,
    match_dtype,
)


def standing(module: nn.Module, part: Part) -> dict[str, Tensor | None]:
    """Return weight and bias as the enabled parts before ``part`` leave them."""
    parts = parts_of(module)
    earlier = (
        [p for p in parts[: parts.index(part)] if p.enabled] if part in parts else parts
    )
    own: dict[str, Any] = {
        "weight": module.weight,
        "bias": getattr(module, "bias", None),
    }
    return {**own, **effective_weights(module, earlier)} if earlier else own


def factor(part: LoraPart, weight: Tensor) -> Tensor:
    """Return c = m / ‖W + ΔW‖, (out,); gradients reach m alone."""
    pair = part.pair
    with torch.no_grad():
        wide = weight if weight.dtype == torch.float64 else weight.float()
        norms = pair.norms(pair.summed(wide))
    assert pair.magnitude is not None  # noqa: S101 - a DoRA part has one
    return (pair.magnitude / norms).reshape(-1)


class DoraLinearPart(LinearPart):
    """DoRA on ``nn.Linear`` and transformers' ``Conv1D``."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: (..., in)   output: (..., out)."""
        now = standing(module, self)
        c = factor(self, now["weight"])  # type: ignore[arg-type]
        plain = output if now["bias"] is None else output - now["bias"]
        delta = low_rank(self.pair, match_dtype(self.pair.drop(args[0]), self.pair.a))
        return (output + (c - 1) * plain + c * delta * self.pair.scale).to(output.dtype)


class DoraConvPart(ConvPart):
    """DoRA on convolutions: c stands for one output channel."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: (batch, in, ...)   output: (batch, out, ...)."""
        now = standing(module, self)
        wide = (-1, *[1] * (len(self.pair.layout.shape) - 2))
        c = factor(self, now["weight"]).view(wide)  # type: ignore[arg-type]
        plain = output if now["bias"] is None else output - now["bias"].view(wide)
        delta = self.low_rank(module, args[0])
        return (output + (c - 1) * plain + c * delta * self.pair.scale).to(output.dtype)


class DoraEmbeddingPart(EmbeddingPart):
    """DoRA on embeddings: y = Wᵀ · onehot(id), so c stands for one place of the embedding."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: ids (...)   output: (..., width)."""
        c = factor(self, standing(module, self)["weight"])  # type: ignore[arg-type]
        delta = self.rows(module, args[0], output)
        return (output + (c - 1) * output + c * delta * self.pair.scale).to(
            output.dtype
        )
