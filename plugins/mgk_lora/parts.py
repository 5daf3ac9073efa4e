"""What sits on a module and adds the delta to its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from mgk_core.model.forwards import embed_scale, is_scaled_embedding
from mgk_core.model.inject import Part
from mgk_lora import product
from mgk_lora.pair import Pair


class LoraPart(Part):
    """A part with one pair, for the module's ``weight``."""

    pair: Pair

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def pairs(self) -> dict[str, Pair]:
        """Return weight attribute → pair."""
        return {"weight": self.pair}

    def weights(
        self, module: nn.Module, current: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return what weight and bias become, differentiable, in their own dtype."""
        changed = {"weight": self.pair.apply_to(current["weight"])}
        if self.pair.bias is not None:
            changed["bias"] = _plus(current["bias"], self.pair.bias * self.pair.scale)
        return changed


class LinearPart(LoraPart):
    """output + scale · (x Aᵀ) Bᵀ, on ``nn.Linear`` and transformers' ``Conv1D``."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: (..., in)   output: (..., out)."""
        pair = self._modules["pair"]
        own = pair._parameters  # type: ignore[union-attr]  # noqa: SLF001 - a lookup that costs nothing
        a, b, bias = own["a"], own["b"], own["bias"]
        x = match_dtype(pair.drop(args[0]), a)  # type: ignore[union-attr, operator, arg-type]
        scale: float = pair.scale  # type: ignore[union-attr, assignment]
        plain = bias is None and pair.a0 is None  # type: ignore[union-attr]
        if plain and product.fits(output, x, a, b):
            return product.add(output, x, a, b, scale)
        hidden = F.linear(x, a)  # type: ignore[arg-type]  # (..., rank)
        if plain:
            if output.dim() == 2 and output.dtype == hidden.dtype == b.dtype:  # type: ignore[union-attr]
                return torch.addmm(output, hidden, b.t(), alpha=scale)  # type: ignore[union-attr]
            return add(output, F.linear(hidden, b), scale)  # type: ignore[arg-type]
        return add(output, low_rank(pair, x), scale)  # type: ignore[arg-type]


def low_rank(pair: Pair, x: Tensor) -> Tensor:
    """(x Aᵀ) Bᵀ + bias, less the initial factors' share. x: (..., in)   returns: (..., out)."""
    delta = F.linear(F.linear(x, pair.a), pair.b, pair.bias)
    if pair.a0 is not None and pair.b0 is not None:
        delta = delta - F.linear(F.linear(x, pair.a0), pair.b0)
    return delta


class EmbeddingPart(LoraPart):
    """output + scale · gain · Aᵀ[ids] Bᵀ; gain: what a scaled embedding multiplies by."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: ids (...)   output: (..., width)."""
        return add(output, self.rows(module, args[0], output), self.pair.scale)

    def rows(self, module: nn.Module, ids: Tensor, output: Tensor) -> Tensor:
        """Return the delta's rows for these ids, times gain: (..., width)."""
        pair = self.pair
        padding: int | None = module.padding_idx  # type: ignore[assignment]
        delta = F.linear(F.embedding(ids, pair.a.t(), padding), pair.b)
        if pair.a0 is not None and pair.b0 is not None:
            delta = delta - F.linear(F.embedding(ids, pair.a0.t(), padding), pair.b0)
        return (
            delta * embed_scale(module, output)
            if is_scaled_embedding(module)
            else delta
        )


class ConvPart(LoraPart):
    """A convolution to ``rank`` channels per group, then one of kernel 1 to the outputs."""

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: (batch, in, ...)   output: (batch, out, ...)."""
        return add(output, self.low_rank(module, args[0]), self.pair.scale)

    def low_rank(self, module: nn.Module, x: Tensor) -> Tensor:
        """Return the unscaled delta's output, (batch, out, ...)."""
        pair = self.pair
        x = match_dtype(pair.drop(x), pair.a)
        delta = self._through(module, x, pair.a, pair.b, pair.bias)
        if pair.a0 is not None and pair.b0 is not None:
            delta = delta - self._through(module, x, pair.a0, pair.b0, None)
        return delta

    def _through(
        self, module: nn.Module, x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None
    ) -> Tensor:
        kernel = self.pair.layout.shape[1:]
        down = a.reshape(-1, *kernel)  # (groups · rank, in / groups, *kernel)
        hidden = module._conv_forward(x, down, None)  # type: ignore[operator]  # noqa: SLF001 - knows padding modes
        up = b.reshape(-1, b.shape[-1], *[1] * (len(kernel) - 1))  # (out, rank, 1, ...)
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 2]
        result: Tensor = conv(hidden, up, bias, groups=self.pair.layout.blocks)
        return result


class WeightPart(Part):
    """The general way: weight + ΔW for the call. For weights that are used functionally.

    Slots of ``nn.Module`` cannot hold a dot, so pairs are numbered in the order of ``attributes``.
    """

    on_weights = True

    def __init__(self, pairs: Mapping[str, Pair], biases: Mapping[str, str]) -> None:
        """:param biases: weight attribute → attribute of the bias that goes with it."""
        super().__init__()
        self.attributes, self.biases = tuple(pairs), dict(biases)
        self.held = nn.ModuleList(pairs.values())

    def pairs(self) -> dict[str, Pair]:
        """Return weight attribute → pair."""
        return dict(zip(self.attributes, self.held, strict=True))  # type: ignore[arg-type]

    def weights(
        self, module: nn.Module, current: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Return what each pair's weight becomes, differentiable, in its own dtype."""
        changed: dict[str, Tensor] = {}
        for attribute, pair in self.pairs().items():
            changed[attribute] = pair.apply_to(current[attribute])
            if pair.bias is not None:
                bias = self.biases[attribute]
                changed[bias] = _plus(current[bias], pair.bias * pair.scale)
        return changed


def _plus(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight + delta).to(weight.dtype)


def match_dtype(x: Tensor, a: Tensor) -> Tensor:
    """Bring an input to the adapter's dtype, unless autocast chooses the dtype anyway."""
    if x.dtype == a.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(a.dtype)


def add(output: Tensor, delta: Tensor, scale: float) -> Tensor:
    """Return output + scale · delta, summed in the wider dtype and rounded once to the output's."""
    return torch.add(output, delta, alpha=scale).to(output.dtype)
