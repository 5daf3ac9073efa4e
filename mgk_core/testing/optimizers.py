"""The laws of optimizers: equal to the reference, bit-equal twice, resumes, converges."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter
from mgk_core.testing.history import same_bits, shake, snapshot
from mgk_core.testing.laws import (
    Law,
    LawResult,
    NotApplicable,
    broken,
    hold_all,
    law,
    require,
)
from mgk_core.testing.reference import attach_dense
from mgk_core.testing.subject import looks
from mgk_core.testing.zoo import make

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
MakeFor = Callable[[Adapter], torch.optim.Optimizer]


@frozen(eq=False)
class Maker:
    """An optimizer under test.

    reference: makes the one that it must equal, or None. make_for: makes it for a real adapter.
    """

    make: Make
    reference: Make | None = None
    make_for: MakeFor | None = None


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
    found, wanted = (
        _after(m, 20, torch.float64) for m in (maker.make, maker.reference)
    )
    for a, b in zip(found, wanted, strict=True):
        error, bound = (
            (a - b).abs().max().item(),
            20 * 64 * 2.0**-53 * b.abs().max().item(),
        )
        require(
            error <= bound,
            f"after 20 steps it is off by {error:.3g}; at most {bound:.3g}",
        )


@law("bit-equal twice")
def deterministic(maker: Maker) -> None:
    """The same steps from the same start end in the same bits."""
    one, two = _after(maker.make, 20), _after(maker.make, 20)
    require(
        all(torch.equal(a, b) for a, b in zip(one, two, strict=True)),
        "two runs of 20 steps differ",
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
    same = all(
        torch.equal(a, b)
        for a, b in zip(found.parameters, other.parameters, strict=True)
    )
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
    broken(
        f"the loss went from {start:.4g} to {end:.4g}; below {start / 10:.4g} was expected"
    )


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


@law("it trains a real adapter and nothing else")
def trains_adapter(maker: Maker) -> None:
    """Each of an adapter's parameters is in one group and is trained; base and flags stay as they are."""
    if maker.make_for is None:
        raise NotApplicable("it was not given a way to make one for an adapter")
    case = make("linear", layers=3, seed=5)
    adapter = attach_dense(case.model)
    shake(adapter)
    optimizer, before, flags = (
        maker.make_for(adapter),
        snapshot(case),
        looks(case.model),
    )
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    own = {id(p) for p in adapter.parameters()}
    require(len(set(grouped)) == len(grouped), "a parameter is in two groups")
    require(set(grouped) <= own, "a group holds a tensor that is not the adapter's")
    require(set(grouped) == own, "a parameter of the adapter is in no group")
    start = [p.detach().clone() for p in adapter.parameters()]
    for step in range(3):
        optimizer.zero_grad()
        case.model(case.inputs(step)).square().mean().backward()
        optimizer.step()
    require(
        not (changed := same_bits(before, case)), f"it changed the base's {changed}"
    )
    require(
        looks(case.model) == flags,
        "it changed a module's class or a requires_grad flag",
    )
    moved = [
        not torch.equal(a, b) for a, b in zip(start, adapter.parameters(), strict=True)
    ]
    require(all(moved), "a parameter of the adapter was not trained")


LAWS: tuple[Law[Maker], ...] = (
    equals_reference, deterministic, resumes, converges, frozen_stay, trains_adapter,
)  # fmt: skip


def check_optimizer(
    make: Make,
    named: str = "optimizer",
    *,
    reference: Make | None = None,
    make_for: MakeFor | None = None,
) -> list[LawResult]:
    """Run every test on an optimizer.

    :param make: parameters → optimizer
    :param reference: parameters → the optimizer that it must equal
    :param make_for: adapter → optimizer, as ``mgk_make_optimizer``
    """
    return hold_all(LAWS, Maker(make, reference, make_for), named)
