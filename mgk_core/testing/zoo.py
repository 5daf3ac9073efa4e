"""Small models of every kind that an adapter may meet, for tests and for the laws.

Sizes are never square, so that a forgotten transpose shows. Weights come from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from attrs import field, frozen
from torch import Tensor, nn

Kind = Literal[
    "linear",
    "embedding",
    "conv1d",
    "conv2d",
    "conv3d",
    "grouped",
    "transposed",
    "attention",
    "experts",
    "mixed",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Conv1D(nn.Module):
    """The transposed linear layer of GPT-2, weight (in, out), as transformers has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.1)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in)   returns: (..., out)."""
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(
            *x.shape[:-1], self.nf
        )


class Experts(nn.Module):
    """A stack of matrices as one plain Parameter, (experts, out, in); each token goes to each expert."""

    def __init__(self, count: int, out: int, into: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, out, into) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in)   returns: (..., experts · out)."""
        return torch.cat(
            [nn.functional.linear(x, matrix) for matrix in self.up], dim=-1
        )


class Attention(nn.Module):
    """Torch's attention over a sequence, on itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, length, width)."""
        output: Tensor = self.mha(x, x, x, need_weights=False)[0]
        return output


class Swap(nn.Module):
    """Exchange the last two dimensions: between sequences and channels."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., a, b)   returns: (..., b, a)."""
        return x.transpose(-1, -2).contiguous()


@frozen(eq=False)
class Case:
    """A model and how to make inputs for it.

    sample: generator, batch → the model's input.
    """

    kind: Kind
    model: nn.Module = field(repr=False)
    sample: Callable[[torch.Generator, int], Tensor] = field(repr=False)

    def inputs(self, seed: int = 0, batch: int = 5) -> Tensor:
        """Return a batch of inputs in the model's dtype (ids stay integers)."""
        x = self.sample(torch.Generator().manual_seed(seed), batch)
        first = next(self.model.parameters())
        return x.to(first.device, first.dtype if x.is_floating_point() else x.dtype)


Sizes = Callable[[int], int]
"""Usual size of one dimension → the size to take."""


def make(
    kind: Kind,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layers: int = 1,
    sizes: Sizes = lambda usual: usual,
) -> Case:
    """Return a frozen model of a kind, in evaluation mode.

    :param layers: 1: the bare module, linear in its weights (but for attention); more: with GELU between
    :param sizes: how large each dimension is; squares are avoided
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules, sample = _MAKERS[kind](sizes)
        if layers > 1:
            modules = [
                *modules,
                nn.GELU(),
                nn.LazyLinear(11),
                *_more(layers - 2),
                nn.GELU(),
                nn.LazyLinear(6),
            ]
        model = nn.Sequential(*modules)
        model(
            sample(torch.Generator().manual_seed(0), 2)
        )  # lazy layers take their shape
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return Case(kind, model.to(dtype).eval(), sample)


def _more(count: int) -> list[nn.Module]:
    return [m for i in range(count) for m in (nn.GELU(), nn.LazyLinear(9 + 2 * i))]


def _floats(*shape: int) -> Callable[[torch.Generator, int], Tensor]:
    return lambda generator, batch: torch.randn(batch, *shape, generator=generator)


def _ids(length: int, count: int) -> Callable[[torch.Generator, int], Tensor]:
    return lambda generator, batch: torch.randint(
        0, count, (batch, length), generator=generator
    )


def _apart(one: int, other: int) -> int:
    """Return ``other``, or the next number where the two are the same."""
    return other + (one == other)


_Made = tuple[list[nn.Module], Callable[[torch.Generator, int], Tensor]]


def _linear(n: Sizes) -> _Made:
    into = n(13)
    return [nn.Linear(into, _apart(into, n(7)))], _floats(into)


def _embedding(n: Sizes) -> _Made:
    count = n(19)
    return [nn.Embedding(count, _apart(count, n(8)))], _ids(6, count)


def _conv1d(n: Sizes) -> _Made:
    into = n(5)
    return [nn.Conv1d(into, _apart(into, n(8)), 3, padding=1)], _floats(into, 9)


def _conv2d(n: Sizes) -> _Made:
    into = n(4)
    conv = nn.Conv2d(
        into,
        _apart(into, n(6)),
        (3, 2),
        stride=(2, 1),
        padding_mode="circular",
        padding=1,
    )
    return [conv], _floats(into, 7, 6)


def _conv3d(n: Sizes) -> _Made:
    into = n(3)
    return [nn.Conv3d(into, _apart(into, n(5)), 2, dilation=(1, 2, 1))], _floats(
        into, 3, 5, 4
    )


def _grouped(n: Sizes) -> _Made:
    into = n(2)
    return [
        nn.Conv2d(3 * into, 3 * _apart(into, n(3)), 3, groups=3, padding=1)
    ], _floats(3 * into, 5, 4)


def _transposed(n: Sizes) -> _Made:
    into = n(12)
    return [Conv1D(_apart(into, n(7)), into)], _floats(4, into)


def _attention(n: Sizes) -> _Made:
    width = 3 * n(4)
    return [Attention(width, 3)], _floats(5, width)


def _experts(n: Sizes) -> _Made:
    into = n(10)
    return [Experts(3, _apart(into, n(7)), into)], _floats(4, into)


def _mixed(n: Sizes) -> _Made:
    count, width = n(17), 2 * n(5)
    modules = [
        nn.Embedding(count, width), Swap(), nn.Conv1d(width, 14, 3, padding=1, groups=2), Swap(), Conv1D(12, 14),
        nn.GELU(), Attention(12, 4), nn.Linear(12, 9), nn.Tanh(), Experts(2, 5, 9),
    ]  # fmt: skip
    return modules, _ids(6, count)


_MAKERS: dict[Kind, Callable[[Sizes], _Made]] = {
    "linear": _linear, "embedding": _embedding, "conv1d": _conv1d, "conv2d": _conv2d, "conv3d": _conv3d,
    "grouped": _grouped, "transposed": _transposed, "attention": _attention, "experts": _experts, "mixed": _mixed,
}  # fmt: skip
