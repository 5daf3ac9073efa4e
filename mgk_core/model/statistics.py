"""Showing plugins each target's inputs and output gradients, written once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mgk_core.contract.adapter import all_disabled, base_state_dict
from mgk_core.contract.bundle import Batch, Bundle

LayerVisitor = Callable[[str, Tensor, Tensor | None], None]
"""(weight name, inputs (positions, in), loss gradient at the outputs (positions, out) or None)."""

Recorded = tuple[Tensor, "Tensor | GradientEdge"]


def owners(model: nn.Module, weights: Sequence[str]) -> dict[str, nn.Module]:
    """Return weight name → the module whose ``weight`` it is (the first, for ties).

    Left out: what is not a matrix between one input and one output (biases, projections inside
    ``nn.MultiheadAttention``, stacks of experts, grouped convolutions).
    """
    wanted = set(weights)
    tensors = {id(t): n for n, t in base_state_dict(model).items() if n in wanted}
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        name = tensors.get(id(module._parameters.get("weight")))  # noqa: SLF001 - a lookup without an error
        if name is not None and name not in found and _has_rows(module):
            found[name] = module
    return found


def visit_layers(
    bundle: Bundle,
    weights: Sequence[str],
    batches: Iterable[Batch],
    visit: LayerVisitor,
    *,
    gradients: bool = True,
    live: bool = False,
) -> int:
    """Run batches through the bare base; call ``visit(weight, inputs, gradient)`` per layer and batch.

    live: through the model in its present state, adapters on. inputs: (positions, in), for convolutions the unfolded windows; ids of embeddings as
    (positions, 1). gradient: (positions, out) of the summed loss, or None. Returns the number of
    positions seen.
    """
    model = bundle.model
    captured: dict[str, list[Recorded]] = {}
    modules = owners(model, weights)
    handles = [
        module.register_forward_hook(_recorder(captured.setdefault(name, [])))
        for name, module in modules.items()
    ]
    positions = 0
    was_training = model.training
    model.eval()
    try:
        with (
            nullcontext() if live else all_disabled(model),
            torch.set_grad_enabled(gradients),
        ):
            for batch in batches:
                positions += _one(
                    bundle, batch, captured, _Shown(modules, visit), gradients=gradients
                )
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return positions


@frozen(eq=False)
class _Shown:
    modules: Mapping[str, nn.Module]
    visit: LayerVisitor

    def __call__(
        self, name: str, inputs: Tensor, gradient: Tensor | None, mask: Tensor | None
    ) -> None:
        module = self.modules[name]
        if isinstance(module, _ConvNd):
            inputs = _windows(module, inputs)
            gradient = None if gradient is None else gradient.movedim(1, -1)
        self.visit(
            name,
            _flat(inputs, mask),
            None if gradient is None else _flat(gradient, mask),
        )


def _recorder(store: list[Recorded]) -> Any:
    """Return a hook that keeps a module's input and the place in the graph where its output arises.

    The place, not the tensor: code that changes the output in place afterwards (``ReLU(inplace=True)``)
    would change what the tensor stands for.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            store.append((args[0].detach(), output))
            return output
        if not output.requires_grad:
            # Nothing below needs a gradient where all is frozen; this output is where it begins.
            output = output.detach().requires_grad_().clone()
        store.append((args[0].detach(), get_gradient_edge(output)))
        return output

    return hook


def _one(
    bundle: Bundle,
    batch: Batch,
    captured: dict[str, list[Recorded]],
    show: _Shown,
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
        grads = torch.autograd.grad(total, outputs, allow_unused=True)  # type: ignore[arg-type]
    remaining = iter(grads)
    for name, calls in captured.items():
        for inputs, _ in calls:
            show(name, inputs, next(remaining), mask)
    return int(count) if mask is None else int(mask.sum())


def _has_rows(module: nn.Module) -> bool:
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return False  # attention's out_proj, whose forward is never called
    linear = isinstance(module, (nn.Linear, nn.Embedding)) or type(
        module
    ).__name__.endswith("Conv1D")
    return linear or (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1
    )


def _windows(module: _ConvNd, x: Tensor) -> Tensor:
    """Return what each output position sees: (batch, *spatial, in · kernel), in the weight's order."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode)  # noqa: SLF001 - as its own forward does
    dims = range(2, x.dim())
    for dim, kernel, stride, dilation in zip(
        dims, module.kernel_size, module.stride, module.dilation, strict=True
    ):
        x = x.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    spatial = len(dims)  # now (batch, in, *spatial, *kernel)
    x = x.movedim(1, 1 + spatial)
    return x.flatten(1 + spatial)


def _flat(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """(…, width) → (positions, width), padding left out where the mask fits."""
    wide = tensor.dim() > 1 and tensor.is_floating_point()
    flat = tensor.reshape(-1, tensor.shape[-1]) if wide else tensor.reshape(-1, 1)
    if mask is not None and mask.numel() == flat.shape[0]:
        flat = flat[mask.reshape(-1)]
    return flat.detach()


__all__ = ["LayerVisitor", "owners", "visit_layers"]
