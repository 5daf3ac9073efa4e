"""Showing plugins each target's inputs and output gradients, written once for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.adapter import aliases_of, all_disabled, base_state_dict
from mgk_core.bundle import Batch, Bundle
from mgk_core.context import LayerVisitor


def owners(model: nn.Module, weights: Sequence[str]) -> dict[str, nn.Module]:
    """Return weight name → the module whose parameter it is (the first, for ties)."""
    wanted = set(weights)
    tensors = {id(t): n for n, t in base_state_dict(model).items() if n in wanted}
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            name = tensors.get(id(parameter))
            if name is not None and name not in found:
                found[name] = module
    return found


def visit_layers(
    bundle: Bundle,
    weights: Sequence[str],
    batches: Iterable[Batch],
    visit: LayerVisitor,
    *,
    gradients: bool = True,
) -> int:
    """Run batches through the bare base; call ``visit(weight, inputs, gradient)`` per layer and batch.

    inputs: (positions, in)   gradient: (positions, out) of the summed loss, or None. Returns the
    number of positions seen. Modules with inputs of another kind (ids) are shown as they are.
    """
    model = bundle.model
    captured: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = [
        module.register_forward_hook(_recorder(captured.setdefault(name, [])))
        for name, module in owners(model, weights).items()
    ]
    positions = 0
    was_training = model.training
    model.eval()
    try:
        with all_disabled(model), torch.set_grad_enabled(gradients):
            for batch in batches:
                positions += _one(bundle, batch, captured, visit, gradients=gradients)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return positions


def _recorder(store: list[tuple[Tensor, Tensor]]) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        if torch.is_grad_enabled() and not first.requires_grad:
            # Nothing below needs a gradient where all is frozen; this output is where it begins.
            first = first.detach().requires_grad_()
            store.append((args[0].detach(), first))
            return (first, *output[1:]) if isinstance(output, tuple) else first
        store.append((args[0].detach(), first))
        return output

    return hook


def _one(
    bundle: Bundle,
    batch: Batch,
    captured: dict[str, list[tuple[Tensor, Tensor]]],
    visit: LayerVisitor,
    *,
    gradients: bool,
) -> int:
    for calls in captured.values():
        calls.clear()
    total, count = bundle.loss(batch)
    mask = bundle.valid(batch)
    outputs = [out for calls in captured.values() for _, out in calls]
    grads: Sequence[Tensor | None] = [None] * len(outputs)
    if gradients and outputs:
        grads = torch.autograd.grad(total, outputs, allow_unused=True)
    index = 0
    for name, calls in captured.items():
        for inputs, _ in calls:
            gradient = grads[index]
            index += 1
            visit(name, _flat(inputs, mask), None if gradient is None else _flat(gradient, mask))
    return int(count) if mask is None else int(mask.sum())


def _flat(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """(…, width) → (positions, width), padding left out where the mask fits."""
    flat = (
        tensor.reshape(-1, tensor.shape[-1])
        if tensor.dim() > 1 and tensor.is_floating_point()
        else tensor.reshape(-1, 1)
    )
    if mask is not None and mask.numel() == flat.shape[0]:
        flat = flat[mask.reshape(-1)]
    return flat.detach()


def tied(model: nn.Module, weight: str) -> tuple[str, ...]:
    """Return the other names of a base weight (ties)."""
    tensor = base_state_dict(model)[weight]
    return tuple(n for n in aliases_of(model, tensor) if n != weight)
