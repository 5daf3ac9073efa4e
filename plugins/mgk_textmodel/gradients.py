"""The reference network's gradients by hand: autograd's own products, without its bookkeeping.

For a layer with input h, z = h Wᵀ + c + s · u Bᵀ with u = h Aᵀ, the loss Σ (out − y)² and
g = ∂loss/∂z:

    ∂B = s · gᵀ u      ∂A = s · (g B)ᵀ h      ∂h = g W + s · (g B) A

and ∂z = ∂h · f'(z) below an activation f. Offered where an adapter is plain LoRA on these layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter, LowRank, state_of
from mgk_core.contract.bundle import GradientFn
from mgk_textmodel.network import ACTIVATIONS, ReferenceNetwork
from mgk_textmodel.pairs import Pairs

_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda g, z: torch.ops.aten.threshold_backward(g, z, 0),
    "tanh": lambda g, z: torch.ops.aten.tanh_backward(g, torch.tanh(z)),
}
"""(gradient at f(z), z) → gradient at z."""


@frozen(eq=False)
class Layer:
    """One layer and what an adapter adds to it. weight: (out, in)   a: (rank, in)   b: (out, rank), or None.

    Each is kept beside its transpose, since looking up and turning round cost as much as a small
    product does. They share the parameters' memory, so they change with them. scale: 0-dim fp32; a
    Python number would be turned into a tensor at every product.
    """

    weight: Tensor
    weight_t: Tensor
    bias: Tensor
    a: Tensor | None = None
    a_t: Tensor | None = None
    b: Tensor | None = None
    b_t: Tensor | None = None
    scale: Tensor | None = None
    alpha: float = 0.0


def gradient_function(
    network: ReferenceNetwork, adapter: Adapter, parameters: Sequence[Tensor]
) -> GradientFn | None:
    """Return the hand-derived gradients of ``parameters``; None where they need autograd.

    The gradients are views of one buffer, which each call overwrites.
    """
    known: dict[int, tuple[int, str]] = {}
    layers = _layers(network, adapter, known)
    if layers is None or state_of(network).adapters != [adapter]:
        return None
    if not all(id(p) in known and p.dtype == torch.float32 for p in parameters):
        return None
    views = _views(parameters)
    out = {known[id(p)]: view for p, view in zip(parameters, views, strict=True)}
    lowest = min(i for i, _ in out)
    act, act_backward = ACTIVATIONS[network.activation], _BACKWARD[network.activation]
    two = torch.full((), 2.0, device=parameters[0].device)

    def gradients(batch: Pairs) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        # oneDNN builds a primitive at every call: for GELU and its derivative on 16 x 128 numbers that
        # takes three times as long as torch's own kernels. Set directly, which is twenty times as
        # cheap as torch.backends.mkldnn.flags.
        onednn = torch._C._get_mkldnn_enabled()  # noqa: SLF001
        torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
        try:
            with torch.inference_mode():
                kept, difference = _forward(layers, act, batch)
                _backward(
                    layers,
                    act_backward,
                    kept,
                    torch.mul(difference, two),
                    lowest=lowest,
                    out=out,
                )
                flat = difference.view(-1)
                return torch.dot(flat, flat), batch.count, views
        finally:
            torch._C._set_mkldnn_enabled(onednn)  # noqa: SLF001

    return gradients


def _views(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return views of one new buffer, shaped like the parameters."""
    buffer = torch.empty(
        sum(p.numel() for p in parameters), device=parameters[0].device
    )
    pieces = torch.split(buffer, [p.numel() for p in parameters])
    return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]


def _layers(
    network: ReferenceNetwork, adapter: Adapter, known: dict[int, tuple[int, str]]
) -> list[Layer] | None:
    """Pair the network's layers with the adapter's factors; None where it is more than plain LoRA.

    known: filled with id of a factor → (layer, "a" or "b").
    """
    if not isinstance(adapter, LowRank):
        return None
    targets = dict(adapter.targets())
    layers = []
    for i, own in enumerate(network.layers):
        weight, bias = own.weight.detach(), own.bias.detach()
        name = next(
            (
                n
                for n, t in targets.items()
                if t.parameter is own.weight and not t.transposed
            ),
            None,
        )
        if name is None:
            layers.append(Layer(weight, weight.t(), bias))
            continue
        factors = adapter.factors(targets.pop(name).weight)
        if factors is None or factors.a0 is not None or factors.a.dim() != 2:
            return None
        known |= {id(factors.a): (i, "a"), id(factors.b): (i, "b")}
        a, b = factors.a.detach(), factors.b.detach()
        scale = torch.full((), factors.scale, device=a.device)
        layers.append(
            Layer(weight, weight.t(), bias, a, a.t(), b, b.t(), scale, factors.scale)
        )
    return None if targets else layers


def _forward(
    layers: Sequence[Layer], act: Callable[[Tensor], Tensor], batch: Pairs
) -> tuple[list[tuple[Tensor, Tensor | None, Tensor]], Tensor]:
    """Return each layer's (h, u, z), and out − y: (n, out)."""
    hidden, kept, last = batch.inputs, [], layers[-1]
    for layer in layers:
        z, u = torch.addmm(layer.bias, hidden, layer.weight_t), None
        if layer.a_t is not None and layer.b_t is not None:
            u = torch.mm(hidden, layer.a_t)  # (n, rank)
            z = torch.addmm(z, u, layer.b_t, alpha=layer.alpha)
        kept.append((hidden, u, z))
        hidden = act(z) if layer is not last else z
    return kept, hidden - batch.targets


def _backward(
    layers: Sequence[Layer],
    act_backward: Callable[[Tensor, Tensor], Tensor],
    kept: Sequence[tuple[Tensor, Tensor | None, Tensor]],
    g: Tensor,
    *,
    lowest: int,
    out: Mapping[tuple[int, str], Tensor],
) -> None:
    """Write the gradients into ``out`` by (layer, "a" or "b"), down to the layer ``lowest``."""
    for i in range(len(layers) - 1, lowest - 1, -1):
        layer, (hidden, u, _) = layers[i], kept[i]
        down = None
        if u is not None and layer.b is not None:
            scaled = torch.mul(g, layer.scale)  # type: ignore[arg-type]  # (n, out)
            down = torch.mm(scaled, layer.b)  # (n, rank)
            if (i, "b") in out:
                torch.mm(scaled.t(), u, out=out[i, "b"])
            if (i, "a") in out:
                torch.mm(down.t(), hidden, out=out[i, "a"])
        if i > lowest:
            g = torch.mm(g, layer.weight)
            if down is not None and layer.a is not None:
                g = torch.addmm(g, down, layer.a)
            g = act_backward(g, kept[i - 1][2])
