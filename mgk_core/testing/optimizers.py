"""The laws of optimizers: equal to the reference, bit-equal twice, resumes, converges."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.testing.laws import Law, LawResult, NotApplicable, broken, hold_all, law, require

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@frozen(eq=False)
class Maker:
    """An optimizer under test. reference: what makes the one that it shall equal, or None."""

    make: Make
    reference: Make | None = None


@frozen(eq=False)
class Problem:
    """Least squares of a linear map, two parameters of different shapes; the best loss is zero."""

    parameters: list[nn.Parameter]
    x: Tensor
    y: Tensor

    def loss(self) -> Tensor:
        """Σ (x Wᵀ + b − y)² / n."""
        weight, bias = self.parameters
        return (self.x @ weight.t() + bias - self.y).square().sum() / len(self.x)


def problem(dtype: torch.dtype = torch.float32) -> Problem:
    """Return the same problem each time; the solution is within 1 of the start in every entry."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 5, generator=generator, dtype=torch.float64)
    weight = torch.rand(3, 5, generator=generator, dtype=torch.float64) * 2 - 1
    y = x @ weight.t() + 0.5
    parameters = [
        nn.Parameter(torch.zeros(3, 5, dtype=dtype)),
        nn.Parameter(torch.zeros(3, dtype=dtype)),
    ]
    return Problem(parameters, x.to(dtype), y.to(dtype))


def walk(found: Problem, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Take steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(found.loss())
        optimizer.step()


def _after(make: Make, steps: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    found = problem(dtype)
    walk(found, make(found.parameters), steps)
    return [p.detach().clone() for p in found.parameters]


@law("equal to the reference")
def equals_reference(maker: Maker) -> None:
    """Twenty steps in float64 end where the reference's do, within rounding."""
    if maker.reference is None:
        raise NotApplicable("no reference is given")
    found, wanted = (_after(m, 20, torch.float64) for m in (maker.make, maker.reference))
    for a, b in zip(found, wanted, strict=True):
        error, bound = (a - b).abs().max().item(), 20 * 64 * 2.0**-53 * b.abs().max().item()
        require(error <= bound, f"after 20 steps it is off by {error:.3g}; at most {bound:.3g}")


@law("bit-equal twice")
def deterministic(maker: Maker) -> None:
    """The same steps from the same start end in the same bits."""
    one, two = _after(maker.make, 20), _after(maker.make, 20)
    require(
        all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), "two runs of 20 steps differ"
    )


@law("resumes from its state")
def resumes(maker: Maker) -> None:
    """With ``state_dict`` loaded into a fresh one, the next steps have the same bits."""
    found = problem()
    optimizer = maker.make(found.parameters)
    walk(found, optimizer, 7)
    other = problem()
    with torch.no_grad():
        for to, of in zip(other.parameters, found.parameters, strict=True):
            to.copy_(of)
    fresh = maker.make(other.parameters)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    walk(found, optimizer, 5)
    walk(other, fresh, 5)
    same = all(torch.equal(a, b) for a, b in zip(found.parameters, other.parameters, strict=True))
    require(same, "5 steps after loading the state differ from 5 steps without a break")


@law("converges")
def converges(maker: Maker) -> None:
    """On least squares of full rank, 1500 steps bring the loss below a tenth of the start's."""
    found = problem()
    optimizer, start = maker.make(found.parameters), found.loss().item()
    end = start
    for _ in range(30):
        walk(found, optimizer, 50)
        end = found.loss().item()
        if end < start / 10:
            return
    broken(f"the loss went from {start:.4g} to {end:.4g}; below {start / 10:.4g} was expected")


@law("frozen parameters stay")
def frozen_stay(maker: Maker) -> None:
    """A parameter that requires no gradient keeps its bits."""
    found = problem()
    with torch.no_grad():
        found.parameters[1].fill_(0.25)
    found.parameters[1].requires_grad_(False)
    walk(found, maker.make(found.parameters), 5)
    require(bool((found.parameters[1] == 0.25).all()), "a frozen parameter was changed")
    require(bool(found.parameters[0].any()), "the other parameter was not trained")


LAWS: tuple[Law[Maker], ...] = (equals_reference, deterministic, resumes, converges, frozen_stay)


def check_optimizer(
    make: Make, named: str = "optimizer", *, reference: Make | None = None
) -> list[LawResult]:
    """Hold an optimizer to every law.

    :param make: parameters → optimizer
    :param reference: parameters → the optimizer that it shall equal
    """
    return hold_all(LAWS, Maker(make, reference), named)
