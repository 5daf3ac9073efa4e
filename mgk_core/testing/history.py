"""Training an adapter a little, so that laws are tested on factors that learned something."""

from __future__ import annotations

import torch

from mgk_core.contract.adapter import Adapter, base_state_dict
from mgk_core.testing.zoo import Case


def train(
    case: Case, adapter: Adapter, *, steps: int = 4, seed: int = 0, size: float = 0.1
) -> None:
    """Take a few plain gradient steps on random targets; each moves the parameters by ``size`` at most.

    The step length is set by the gradient's largest entry, so that every dtype and kind of model
    moves by about as much. Parameters that get no gradient stay where they are.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = adapter.parameters()
    was_training = case.model.training
    case.model.train()
    for step in range(steps):
        x = case.inputs(seed=1000 * seed + step)
        output = case.model(x)
        target = torch.randn(output.shape, generator=generator).to(output)
        loss = (output - target).float().square().mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None and (largest := gradient.abs().max()) > 0:
                    parameter.sub_(gradient * (size / largest))
    case.model.train(was_training)


def shake(adapter: Adapter, *, seed: int = 0, size: float = 0.1) -> None:
    """Add noise to every trainable parameter: the quick way to a delta that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(
                (torch.randn(parameter.shape, generator=generator) * size).to(parameter)
            )


def snapshot(case: Case) -> dict[str, torch.Tensor]:
    """Return copies of the bare base's tensors."""
    return {
        name: tensor.detach().clone()
        for name, tensor in base_state_dict(case.model).items()
    }


def same_bits(before: dict[str, torch.Tensor], case: Case) -> list[str]:
    """Return the names of base tensors that differ from ``before``, bit for bit; order counts."""
    after = base_state_dict(case.model)
    if list(before) != list(after):
        return ["(the names themselves or their order)"]
    return [n for n, t in before.items() if not _identical(t, after[n].detach())]


def _identical(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare bits, so that NaN equals NaN and −0 differs from 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return (
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        if a.dim()
        else bool(a == b)
    )
