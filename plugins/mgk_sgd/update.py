"""Applying gradients with any optimizer, and not applying them where something is not finite.

On the CPU the check is a plain ``if``. On a device it must not wait for the result: torch's fused
optimizers take a flag (``found_inf``) and leave everything as it is where it is 1; for any other
optimizer parameters and state are copied before the step and chosen after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Update = Callable[[Sequence[Tensor], "Tensor | None"], None]
"""(gradients in the optimizer's order, 0-dim float that is 1 where the step must be left out)."""


def make_update(optimizer: torch.optim.Optimizer, *, on_device: bool) -> Update:
    """Choose how to apply gradients. on_device: the flag may be 1, and may not be read."""
    if on_device:
        return _flagged(optimizer) if _takes_flag(optimizer) else _copied(optimizer)
    return _bare_sgd(optimizer) if _is_bare_sgd(optimizer) else _plain(optimizer)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the optimizer's parameters in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_bare_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """SGD with nothing but a learning rate: the update is one addition."""
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    return not any(
        group[key] for key in ("momentum", "weight_decay", "nesterov", "maximize")
    )


def _bare_sgd(optimizer: torch.optim.Optimizer) -> Update:
    """Do p ← p − lr · g, as torch's foreach SGD does it, without its bookkeeping."""
    group = optimizer.param_groups[0]
    parameters = [p.detach() for p in group["params"]]

    def update(gradients: Sequence[Tensor], _: Tensor | None) -> None:
        torch._foreach_add_(parameters, list(gradients), alpha=-group["lr"])

    return update


def _plain(optimizer: torch.optim.Optimizer) -> Update:
    parameters = parameters_of(optimizer)

    def update(gradients: Sequence[Tensor], _: Tensor | None) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    return update


def _takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _flagged(optimizer: torch.optim.Optimizer) -> Update:
    """Inform the fused kernels; they also leave their step counts where they are."""
    plain = _plain(optimizer)

    def update(gradients: Sequence[Tensor], bad: Tensor | None) -> None:
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        plain(gradients, None)

    return update


def _copied(optimizer: torch.optim.Optimizer) -> Update:
    """Step, then take back: x ← bad ? old : new for every parameter and tensor of the state.

    State that the skipped step itself created becomes zero. Counters that live on the CPU (python
    numbers, torch's own ``step``) cannot be taken back without waiting for the device: such an
    optimizer counts the skipped step.
    """
    plain = _plain(optimizer)

    def update(gradients: Sequence[Tensor], bad: Tensor | None) -> None:
        assert bad is not None  # noqa: S101 - chosen for a device by make_update
        flag = bad > 0
        before = {
            key: tensor.detach().clone()
            for key, tensor in _tensors(optimizer, flag.device)
        }
        plain(gradients, None)
        with torch.no_grad():
            for key, tensor in _tensors(optimizer, flag.device):
                old = before[key] if key in before else torch.zeros_like(tensor)
                tensor.copy_(torch.where(flag, old, tensor))

    return update


def _tensors(
    optimizer: torch.optim.Optimizer, device: torch.device
) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """Yield ((parameter's index, key), tensor) of the parameters and of the tensors in their state."""
    for i, parameter in enumerate(parameters_of(optimizer)):
        yield (i, ""), parameter
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.device == device:
                yield (i, key), value
