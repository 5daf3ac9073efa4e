"""The reference network's gradients by hand: autograd's own products, without its bookkeeping.

For a layer with input h, z = h Wᵀ + c + s · u Bᵀ with u = h Aᵀ, the loss Σ (out − y)² and
g = ∂loss/∂z:

    ∂B = s · gᵀ u      ∂A = s · (g B)ᵀ h      ∂h = g W + s · (g B) A

and ∂z = ∂h · f'(z) below an activation f. Offered where an adapter is plain LoRA on these layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.adapter import Adapter, LowRank, state_of
from mgk_core.bundle import GradientFn
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
    """One layer and what an adapter adds to it. a: (rank, in)   b: (out, rank), or None."""

    linear: nn.Linear
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0


def gradient_function(network: ReferenceNetwork, adapter: Adapter, parameters: Sequence[Tensor]) -> GradientFn | None:
    """Return the hand-derived gradients of ``parameters``; None where they need autograd."""
    layers = _layers(network, adapter)
    if layers is None or state_of(network).adapters != [adapter]:
        return None
    known = {id(t): (i, kind) for i, layer in enumerate(layers) for t, kind in ((layer.a, "a"), (layer.b, "b"))}
    if not all(id(p) in known and p.dtype == torch.float32 for p in parameters):
        return None
    wanted = [known[id(p)] for p in parameters]
    lowest = min(i for i, _ in wanted)
    act, act_backward = ACTIVATIONS[network.activation], _BACKWARD[network.activation]

    def gradients(batch: Pairs) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        with torch.no_grad():
            kept, difference = _forward(layers, act, batch)
            found = _backward(layers, act_backward, kept, difference * 2, lowest)
            flat = difference.view(-1)
            return torch.dot(flat, flat), batch.count, [found[key] for key in wanted]

    return gradients


def _layers(network: ReferenceNetwork, adapter: Adapter) -> list[Layer] | None:
    """Pair the network's layers with the adapter's factors; None where it is more than plain LoRA."""
    if not isinstance(adapter, LowRank):
        return None
    targets = dict(adapter.targets())
    layers, plain = [], 0
    for linear in network.layers:
        name = next((n for n, t in targets.items() if t.parameter is linear.weight and not t.transposed), None)
        factors = adapter.factors(name) if name is not None else None
        if name is not None:
            if factors is None or factors.a0 is not None or factors.a.dim() != 2:
                return None
            plain += 1
        layers.append(Layer(linear) if factors is None else Layer(linear, factors.a, factors.b, factors.scale))
    return layers if plain == len(targets) else None


def _forward(
    layers: Sequence[Layer], act: Callable[[Tensor], Tensor], batch: Pairs
) -> tuple[list[tuple[Tensor, Tensor | None, Tensor]], Tensor]:
    """Return each layer's (h, u, z), and out − y: (n, out)."""
    hidden, kept = batch.inputs, []
    for layer in layers:
        z, u = torch.addmm(layer.linear.bias, hidden, layer.linear.weight.t()), None
        if layer.a is not None and layer.b is not None:
            u = hidden @ layer.a.t()  # (n, rank)
            z = torch.addmm(z, u, layer.b.t(), alpha=layer.scale)
        kept.append((hidden, u, z))
        hidden = act(z) if layer is not layers[-1] else z
    return kept, kept[-1][2] - batch.targets


def _backward(
    layers: Sequence[Layer],
    act_backward: Callable[[Tensor, Tensor], Tensor],
    kept: Sequence[tuple[Tensor, Tensor | None, Tensor]],
    g: Tensor,
    lowest: int,
) -> dict[tuple[int, str], Tensor]:
    """Return the gradients by (layer, "a" or "b"), down to the layer ``lowest``."""
    found: dict[tuple[int, str], Tensor] = {}
    for i in range(len(layers) - 1, lowest - 1, -1):
        layer, (hidden, u, _) = layers[i], kept[i]
        down = None
        if u is not None and layer.b is not None:
            scaled = g * layer.scale  # (n, out)
            down = scaled @ layer.b  # (n, rank)
            found[i, "b"] = scaled.t() @ u
            found[i, "a"] = down.t() @ hidden
        if i > lowest:
            g = g @ layer.linear.weight
            if down is not None and layer.a is not None:
                g = torch.addmm(g, down, layer.a)
            g = act_backward(g, kept[i - 1][2])
    return found
