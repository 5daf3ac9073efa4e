"""What can be adapted: each kind of module and how its weight is seen as blocks of matrices."""

from __future__ import annotations

import math
from typing import Literal

from attrs import frozen
from torch import Tensor, nn

from mgk_core.model.forwards import is_scaled_embedding, plain_forward, type_named

Kind = Literal["linear", "embedding", "conv", "weight"]
"""How the live delta is computed: from the module's input, or (``weight``) on the weight itself."""

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@frozen
class Layout:
    """A weight as ``blocks`` matrices of (rows, cols), before transposition (out, in).

    shape: as stored. batched: the factors keep the block dimension. transposed: stored (in, out).
    norm_dims: what DoRA's norms run over, so that one is left per output.
    """

    shape: tuple[int, ...]
    rows: int
    cols: int
    blocks: int = 1
    batched: bool = False
    transposed: bool = False
    norm_dims: tuple[int, ...] = (1,)

    def a_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of A: (rank, in), or (blocks, rank, in)."""
        return (self.blocks, rank, self.cols) if self.batched else (rank, self.cols)

    def b_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of B: (out, rank), or (blocks, out, rank)."""
        return (self.blocks, self.rows, rank) if self.batched else (self.rows, rank)


@frozen(eq=False)
class Candidate:
    """One weight that an adapter may be put on.

    name: of the module, or of the weight itself where it is a plain parameter; patterns match it.
    attribute: the weight's name, relative to ``module``. bias: the same of its bias. linear:
    whether ``all-linear`` means it.
    """

    name: str
    weight: str
    module: nn.Module
    module_name: str
    attribute: str
    kind: Kind
    layout: Layout
    bias: str | None = None
    linear: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The base's Parameter."""
        return self.module.get_parameter(self.attribute)


def module_kind(module: nn.Module) -> tuple[Kind, Layout, bool] | None:
    """Return (kind, layout, is linear) of a module with one weight, or None where it has none.

    A subclass with a forward of its own gets its delta on the weight: that is right whatever it
    computes. Known exceptions: quantized linears, whose packed weight cannot be added to, and
    embeddings with a scale.
    """
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        layout = Layout(
            (module.out_features, module.in_features),
            module.out_features,
            module.in_features,
        )
        plain = plain_forward(module, nn.Linear) or not weight_is_dense(weight)
        return ("linear" if plain else "weight"), layout, True
    if isinstance(module, nn.Embedding):
        count, width = module.num_embeddings, module.embedding_dim
        layout = Layout((count, width), width, count, transposed=True, norm_dims=(0,))
        plain = plain_forward(module, nn.Embedding) or is_scaled_embedding(module)
        return ("embedding" if plain else "weight"), layout, False
    if isinstance(module, _CONVS):
        plain = any(plain_forward(module, c) for c in _CONVS)
        return ("conv" if plain else "weight"), _conv_layout(module), False
    if (
        type_named(module, "Conv1D")
        and isinstance(weight, nn.Parameter)
        and weight.dim() == 2
    ):
        cols, rows = weight.shape
        return (
            "linear",
            Layout((cols, rows), rows, cols, transposed=True, norm_dims=(0,)),
            True,
        )
    return None


def parameter_layout(parameter: Tensor) -> Layout | None:
    """Return the layout of a plain weight: a matrix, or a stack of them (experts); else None."""
    shape = tuple(parameter.shape)
    if parameter.dim() == 2:
        return Layout(shape, shape[0], shape[1])
    if parameter.dim() == 3:
        return Layout(shape, shape[1], shape[2], shape[0], batched=True, norm_dims=(2,))
    return None


def weight_is_dense(weight: object) -> bool:
    """Return whether a weight is stored as plain floating-point numbers."""
    return isinstance(weight, Tensor) and weight.is_floating_point()


def _conv_layout(module: nn.Module) -> Layout:
    weight, groups = module.weight, module.groups
    assert isinstance(weight, Tensor)  # noqa: S101 - a convolution has a weight
    assert isinstance(groups, int)  # noqa: S101 - and a number of groups
    shape = tuple(weight.shape)
    norm_dims = tuple(range(1, len(shape)))
    return Layout(
        shape,
        shape[0] // groups,
        math.prod(shape[1:]),
        groups,
        batched=groups > 1,
        norm_dims=norm_dims,
    )
