"""Conformance tests of what changes a delta: transforms, and merge rules by `DeltaSpec`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.outcome import FactorTransform, Transform
from mgk_core.testing.laws import Law, LawResult, NotApplicable, hold_all, law, require

Make = Callable[[], Transform]


def _deltas() -> dict[str, Tensor]:
    """Return deltas of several shapes and sizes; none is square."""
    generator = torch.Generator().manual_seed(0)
    return {
        "usual": torch.randn(7, 13, generator=generator) * 0.1,
        "tall": torch.randn(40, 3, generator=generator),
        "one row": torch.randn(1, 9, generator=generator),
        "tiny": torch.randn(5, 6, generator=generator) * 1e-30,
        "large": torch.randn(5, 6, generator=generator) * 1e15,
        "zero": torch.zeros(4, 5),
    }


@frozen(eq=False)
class Changing:
    """A transform under test. make: the same transform each time."""

    make: Make

    def of(self, name: str, delta: Tensor, rows: slice | None = None) -> Tensor:
        """Return what it makes of a delta."""
        return self.make().delta(name, delta, rows)


@law("finite and of the same shape")
def finite(changing: Changing) -> None:
    """Deltas of any size stay finite, and keep shape and dtype, in fp32 and float64."""
    for name, delta in _deltas().items():
        for dtype in (torch.float32, torch.float64):
            found = changing.of(name, delta.to(dtype))
            require(found.shape == delta.shape, f"{name}: shape {tuple(found.shape)}")
            require(found.dtype == dtype, f"{name}: {found.dtype} from {dtype}")
            require(
                bool(torch.isfinite(found).all()), f"{name}: the result is not finite"
            )


@law("pure")
def pure(changing: Changing) -> None:
    """The same bits twice; the argument and torch's global generator stay as they are."""
    for name, delta in _deltas().items():
        given, state = delta.clone(), torch.get_rng_state()
        one, two = changing.of(name, given).clone(), changing.of(name, given)
        require(torch.equal(given, delta), f"{name}: it changed its argument")
        require(torch.equal(one, two), f"{name}: another result the second time")
        drawn = not torch.equal(torch.get_rng_state(), state)
        require(
            not drawn,
            f"{name}: it draws from torch's global generator, so a rebuild differs",
        )


@law("block by block equals all at once")
def blocks(changing: Changing) -> None:
    """Where it is given blocks of rows, they come to what the whole delta does."""
    if getattr(changing.make(), "whole", False):
        raise NotApplicable("it is always given the whole delta")
    for name, delta in _deltas().items():
        whole = changing.of(name, delta.clone())
        cuts = [slice(i, min(i + 3, len(delta))) for i in range(0, len(delta), 3)]
        apart = torch.cat([changing.of(name, delta[c].clone(), c) for c in cuts])
        error, size = float((apart - whole).abs().max()), float(whole.abs().max())
        bound = 4 * (delta.shape[1] + 4) * 2.0**-24 * size
        require(
            error <= bound,
            f"{name}: blocks are off by {error:.3g}; at most {bound:.3g}",
        )


@law("factors and deltas agree")
def factors(changing: Changing) -> None:
    """Where it changes the factor on the inputs' side, B · right(A) is what becomes of B · A."""
    transform = changing.make()
    if not isinstance(transform, FactorTransform):
        raise NotApplicable("it does not change factors")
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(2, 13, generator=generator, dtype=torch.float64)
    b = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    dense, low = transform.delta("usual", b @ a, None), b @ transform.right("usual", a)
    error, bound = float((dense - low).abs().max()), 1e-9 * float(dense.abs().max())
    require(error <= bound, f"they differ by {error:.3g}; at most {bound:.3g}")


LAWS: tuple[Law[Changing], ...] = (finite, pure, blocks, factors)


def check_transform(make: Make, named: str = "transform") -> list[LawResult]:
    """Run every test on a transform. make: the same transform each time."""
    return hold_all(LAWS, Changing(make), named)
