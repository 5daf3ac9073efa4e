"""Making torch's own optimizers, in the variant that is fastest where the parameters live."""

from __future__ import annotations

import torch
from torch import nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.errors import InputError
from mgk_sgd.specs import AdamwSpec, OptimizerSpec, SgdSpec


def make_optimizer(adapter: Adapter, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a spec over the adapter's parameters that require gradients."""
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(
            f"adapter {adapter.name!r} has no parameter that requires a gradient; nothing can be trained"
        )
    if isinstance(spec, SgdSpec):
        return _sgd(parameters, spec)
    if isinstance(spec, AdamwSpec):
        return torch.optim.AdamW(
            parameters,
            lr=spec.lr,
            betas=spec.betas,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            fused=can_fuse(parameters),
        )
    raise InputError(
        f"optimizer type {spec.type!r}: {type(spec).__name__} is neither SGD nor AdamW"
    )


def _sgd(parameters: list[nn.Parameter], spec: SgdSpec) -> torch.optim.SGD:
    fused = can_fuse(parameters) and parameters[0].is_cuda
    optimizer = torch.optim.SGD(
        parameters,
        lr=spec.lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
        fused=fused or None,
        foreach=None if fused else True,
    )
    if spec.momentum:
        # torch would fill the buffer with the first gradient; zeros give the same first step (0 * momentum
        # + g), and stay right where that step is skipped on the device.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Return whether torch has a fused kernel for all of these."""
    return all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters
    )
