"""Making optimizers: torch's own in the variant that is fastest here, and those of two libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_sgd import specs
from mgk_sgd.groups import groups_of

Groups = list[dict[str, Any]]
"""Torch's parameter groups, each with its own ``lr`` and ``weight_decay``."""
Make = Callable[[Groups, Any], torch.optim.Optimizer]
"""Makes the optimizer of one class of specs."""


def make_optimizer(
    adapter: Adapter, spec: specs.OptimizerSpec
) -> torch.optim.Optimizer:
    """Return the optimizer of a spec over the adapter's parameters that require gradients.

    :raises InputError: nothing can be trained, or a pattern of ``groups`` matches nothing
    :raises EnvironmentFault: the optimizer's library is not installed
    """
    make = MAKERS.get(type(spec))
    if make is None:
        raise InputError(
            f"optimizer type {spec.type!r}: {type(spec).__name__} is none of"
            f" {', '.join(cls.__name__ for cls in MAKERS)}"
        )
    return make(groups_of(adapter, spec), spec)


def _sgd(groups: Groups, spec: specs.SgdSpec) -> torch.optim.Optimizer:
    parameters = members(groups)
    fused = can_fuse(parameters) and parameters[0].is_cuda
    optimizer = torch.optim.SGD(
        groups,
        lr=spec.lr,
        momentum=spec.momentum,
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


def _adamw(groups: Groups, spec: specs.AdamwSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        fused=can_fuse(members(groups)),
    )


def _adamw_8bit(groups: Groups, spec: specs.Adamw8bitSpec) -> torch.optim.Optimizer:
    _require("bitsandbytes", spec)
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        min_8bit_size=spec.min_8bit_size,
    )
    return optimizer


def _schedule_free(
    groups: Groups, spec: specs.AdamwScheduleFreeSpec
) -> torch.optim.Optimizer:
    _require("schedulefree", spec)
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)
    optimizer.train()
    averaging: torch.optim.Optimizer = optimizer
    return averaging


def _adafactor(groups: Groups, spec: specs.AdafactorSpec) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(
        groups,
        lr=spec.lr,
        beta2_decay=spec.beta2_decay,
        eps=(None, spec.eps2),
        d=spec.d,
    )


def _muon(groups: Groups, spec: specs.MuonSpec) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise EnvironmentFault(
            f"optimizer type {spec.type!r} needs torch 2.9 or newer; this is {torch.__version__}"
        )
    matrices, others = _split(groups, is_matrix)
    if not matrices:
        raise InputError(
            f"optimizer type {spec.type!r}: this adapter has no matrix to make orthogonal; use 'adamw'"
        )
    muon = torch.optim.Muon(
        matrices,
        lr=spec.lr,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        ns_steps=spec.ns_steps,
        adjust_lr_fn=spec.adjust,
    )
    return Joined(muon, _adamw(others, spec)) if others else muon


class Joined(torch.optim.Optimizer):
    """Two optimizers over different parameters; one to whatever steps, saves or loads it."""

    def __init__(
        self, first: torch.optim.Optimizer, second: torch.optim.Optimizer
    ) -> None:
        self._parts = (first, second)
        self._first = len(first.param_groups)
        super().__init__([*first.param_groups, *second.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both."""
        loss = None if closure is None else closure()
        groups = (self.param_groups[: self._first], self.param_groups[self._first :])
        for part, own in zip(self._parts, groups, strict=True):
            # Loading a state exchanges these objects, so they are handed down at each step.
            part.param_groups, part.state = own, self.state
            part.step()
        return loss


def is_matrix(parameter: Tensor) -> bool:
    """Return whether Muon trains a parameter: a matrix with more than one row and column."""
    return parameter.dim() == 2 and min(parameter.shape) > 1


def _split(groups: Groups, first: Callable[[Tensor], bool]) -> tuple[Groups, Groups]:
    """Divide each group into the parameters that ``first`` means and the others; empty ones are left out."""
    chosen, others = [], []
    for group in groups:
        yes = [p for p in group["params"] if first(p)]
        no = [p for p in group["params"] if not first(p)]
        chosen += [{**group, "params": yes}] if yes else []
        others += [{**group, "params": no}] if no else []
    return chosen, others


def members(groups: Groups) -> list[nn.Parameter]:
    """Return the parameters of all groups."""
    return [p for group in groups for p in group["params"]]


def can_fuse(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether torch has a fused kernel for all of these."""
    return all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters
    )


def _require(library: str, spec: specs.OptimizerSpec) -> None:
    if find_spec(library) is None:
        raise EnvironmentFault(
            f"optimizer type {spec.type!r} needs {library}: pip install 'mgk[optimizers]'"
        )


MAKERS: Mapping[type[specs.OptimizerSpec], Make] = {
    specs.SgdSpec: _sgd,
    specs.AdamwSpec: _adamw,
    specs.Adamw8bitSpec: _adamw_8bit,
    specs.AdamwScheduleFreeSpec: _schedule_free,
    specs.AdafactorSpec: _adafactor,
    specs.MuonSpec: _muon,
}
"""Configuration class → what makes its optimizer."""
