"""One optimizer step: forward, backward, accumulation, loss terms, clipping, update.

With S = Σ of the micro-batches' summed losses and N = Σ of their counts, the gradient is
``∇S / N + ∇Σ terms``. Sums are divided once, by the whole count, so that a step does not depend on
how its examples were split; loss terms count once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mgk_core.contract.bundle import Batch
from mgk_core.contract.context import StepContext, StepOut
from mgk_sgd.draws import TERMS, Draws
from mgk_sgd.gradients import choose
from mgk_sgd.schedule import Schedule
from mgk_sgd.state import flatten, restore
from mgk_sgd.update import make_update, parameters_of


class StandardStep:
    """Trains with any `torch.optim.Optimizer`; made once per phase.

    A step whose loss or gradient is not finite changes nothing. wait: whether the device's answer
    may be read at once, which costs nothing on the CPU and everything elsewhere.
    """

    def __init__(self, ctx: StepContext, *, wait: bool | None = None) -> None:
        phase = ctx.phase
        self.optimizer: torch.optim.Optimizer = phase.optimizer
        self.parameters = parameters_of(self.optimizer)
        self.terms = ctx.terms
        self.clip: float | None = getattr(phase.phase.optimizer, "clip", None)
        own = Schedule.of(phase.phase.optimizer, phase.steps).factor
        self.factor = own if ctx.factor is None else ctx.factor
        # A second step of the phase (after a recovery) must not take the scheduled rate for the full one.
        self.rates = [
            float(group.setdefault("initial_lr", group["lr"]))
            for group in self.optimizer.param_groups
        ]
        self.wait = phase.device.type == "cpu" if wait is None else wait
        self.gradient_of = choose(
            phase,
            self.parameters,
            own=getattr(phase.phase.step, "gradients", "auto") == "auto",
        )
        self.world = phase.world
        self.draws = Draws(phase.seed, phase.device)
        self.update = make_update(self.optimizer, on_device=not self.wait)
        # schedulefree's optimizers have a mode in which the parameters are what is to be evaluated.
        self.averages = hasattr(self.optimizer, "eval")
        self._views: Sequence[Tensor] = ()
        self._buffer: Tensor | None = None

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> StepOut:
        """Perform step ``step`` (0-based) on the examples of all micro-batches together."""
        if self.averages:
            self.optimizer.train()  # type: ignore[attr-defined]
        total, count, gradients = self._accumulate(micro_batches, step)
        loss = total / count
        gradients, whole = self._divided(gradients, count)
        terms = self._add_terms(gradients, step)
        norm = gradient_norm(whole)
        if self.clip is not None:
            torch._foreach_mul_(whole, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        lr = self._set_rates(step)
        checked = loss if terms is None else loss + terms
        if not self.wait:
            bad = 1.0 - torch.isfinite(norm + checked).to(torch.float32)
            self.update(gradients, bad)
            return StepOut(loss, terms, norm, count, bad, lr)
        length = norm.item()
        sound = math.isfinite(length + checked.item())
        if sound:
            self.update(gradients, None)
        return StepOut(loss.item(), terms, length, count, 0.0 if sound else 1.0, lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the optimizer's state as flat tensors."""
        return flatten(self.optimizer)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state over, bit for bit."""
        restore(self.optimizer, state)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the weights to evaluate in place inside the block; afterwards the same bits as before."""
        if not self.averages:
            yield
            return
        kept = [p.detach().clone() for p in self.parameters]
        modes = [group["train_mode"] for group in self.optimizer.param_groups]
        self.finish()
        try:
            yield
        finally:
            # The optimizer's own way back rounds; evaluating must not change what is trained.
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, kept)
            for group, mode in zip(self.optimizer.param_groups, modes, strict=True):
                group["train_mode"] = mode

    def finish(self) -> None:
        """Put the weights to merge in place."""
        if self.averages:
            self.optimizer.eval()  # type: ignore[attr-defined]

    def _accumulate(
        self, micro_batches: Sequence[Batch], step: int
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        def at(i: int) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
            return self.draws.seeded(
                step, i, lambda: self.gradient_of(micro_batches[i])
            )

        if len(micro_batches) > 1 and self.world.size > 1:
            total, count, *summed = self.world.sum(
                len(micro_batches), lambda i: _flat(at(i))
            )
            return total, count, summed
        total, count, first = at(0)
        if len(micro_batches) == 1:
            return total, count, first
        gradients = [
            g.clone() for g in first
        ]  # the next call may overwrite what this one returned
        for i in range(1, len(micro_batches)):
            more, further, added = at(i)
            total, count = total + more, count + further
            torch._foreach_add_(gradients, list(added))
        return total, count, gradients

    def _divided(
        self, gradients: Sequence[Tensor], count: Tensor
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """As `divided`; views of one buffer that come again are known again."""
        if self._buffer is not None and gradients is self._views:
            return gradients, [self._buffer.div_(count)]
        found, whole = divided(gradients, count)
        if found is gradients:
            self._views, self._buffer = gradients, whole[0]
        return found, whole

    def _add_terms(self, gradients: Sequence[Tensor], step: int) -> Tensor | None:
        """Add the loss terms' gradients; return the terms' sum."""
        if not self.terms:
            return None
        value = self.draws.seeded(
            step, TERMS, lambda: torch.stack([t(step) for t in self.terms]).sum()
        )
        if value.requires_grad:
            added = torch.autograd.grad(value, self.parameters, materialize_grads=True)
            torch._foreach_add_(list(gradients), list(added))
        return value.detach()

    def _set_rates(self, step: int) -> float:
        factor = self.factor(step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.rates[0] * factor


def _flat(found: tuple[Tensor, Tensor, Sequence[Tensor]]) -> list[Tensor]:
    total, count, gradients = found
    return [total, count, *gradients]


def buffer_of(gradients: Sequence[Tensor]) -> Tensor | None:
    """Return the one tensor that the gradients are views of and fill; None where there is none."""
    base = gradients[0]._base  # noqa: SLF001 - torch has no other name for it
    if base is None or not all(g._base is base for g in gradients):  # noqa: SLF001
        return None
    return base if base.numel() == sum(g.numel() for g in gradients) else None


def divided(
    gradients: Sequence[Tensor], count: Tensor
) -> tuple[Sequence[Tensor], list[Tensor]]:
    """Return the gradients over ``count``, and the same as the fewest tensors that hold them all.

    Views of one buffer are divided in place. Otherwise the results are new tensors: autograd may
    hand out one tensor for two parameters, and dividing that in place would divide it twice.
    """
    buffer = buffer_of(gradients)
    if buffer is not None:
        return gradients, [buffer.div_(count)]
    fresh = list(torch._foreach_div(list(gradients), count))  # noqa: SLF001 - public in all but name
    return fresh, fresh


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """2-norm of all gradients together, 0-dim fp32; not finite where any entry is not."""
    if len(gradients) == 1:
        single = gradients[0]
    else:
        norms = torch._foreach_norm(list(gradients))  # noqa: SLF001 - public only through clip_grad_norm_
        single = torch.stack(norms)
    norm: Tensor = torch.linalg.vector_norm(single)
    return norm.float()
