"""What the forward pass leaves for the backward pass, in few bytes and few passes over memory.

Where linear layers multiply bf16 between fp32 ends, what they leave behind need not be wider than
what they multiply. So, for a training step on a CPU with bf16 products:

- RMS norms are one node of the graph, which keeps its input and one number a position;
- a gated unit's product keeps its two factors and makes the activation again;
- every large fp32 activation is kept in bf16, but for attention's own (see `kept_whole`), whose
  probabilities are made again from them and would not add up to one.

The forward pass computes what it computed before. A gradient is off by bf16's rounding of an
operand (2⁻⁹ relative, as that of every bf16 product). Parameters are kept as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mgk_core.model.activation_meter import watcher

SMALL = 1 << 15
"""Entries below which a tensor is kept as it is: there is nothing to win."""

Kept = dict[tuple[Any, ...], tuple["weakref.ref[Any]", Tensor]]
"""A tensor's place in memory → its storage, and what is kept of it."""

TRIED = 8
"""Positions on which a module's own forward and the lean one must agree before it is used."""


@contextmanager
def kept_narrow() -> Iterator[Kept]:
    """Keep large fp32 activations for the backward pass in bf16; each once, however many ask for it."""
    made: Kept = {}
    look = watcher.get()

    def pack(tensor: Tensor) -> Tensor | tuple[Tensor]:
        if (
            tensor.dtype != torch.float32
            or tensor.numel() < SMALL
            or (tensor.is_leaf and tensor.requires_grad)
        ):
            look(tensor)
            return tensor
        storage = tensor.untyped_storage()
        version = tensor._version  # noqa: SLF001 - no public name
        key = (storage.data_ptr(), tensor.storage_offset(), version, tensor.numel())
        found = made.get(key)
        if found is None or found[0]() is not storage or not tensor.is_contiguous():
            found = made[key] = weakref.ref(storage), tensor.detach().to(torch.bfloat16)
            look(found[1])
        return (found[1].view(tensor.shape),)

    def unpack(kept: Tensor | tuple[Tensor]) -> Tensor:
        return kept[0].float() if isinstance(kept, tuple) else kept

    with saved_tensors_hooks(pack, unpack):
        yield made


@contextmanager
def kept_whole() -> Iterator[None]:
    """Keep what the block saves as it is, also inside `kept_narrow`."""
    look = watcher.get()

    def pack(tensor: Tensor) -> Tensor:
        look(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


class _Norm(torch.autograd.Function):
    """y = x r w with r = (mean x² + ε)^-½ over the last dimension; w frozen.

    ∂L/∂x = r (g w − x r² mean(g w x))
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(eps)
            .rsqrt_()
        )
        ctx.save_for_backward(x, weight, r)
        normed: Tensor = (x * r).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        g = grads[0] * weight
        along = (
            torch.linalg.vecdot(g, x).unsqueeze(-1).mul_(r.square()).div_(x.shape[-1])
        )
        return g.addcmul_(x, along, value=-1).mul_(r), None, None


class _Gated(torch.autograd.Function):
    """y = gelu(a) b, tanh form; the activation is made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return nn.functional.gelu(a, approximate="tanh").mul_(b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        of_b = nn.functional.gelu(a, approximate="tanh").mul_(grads[0])
        return torch.ops.aten.gelu_backward(grads[0] * b, a, approximate="tanh"), of_b


class LeanNorm:
    """Mixin: an RMS norm as one node of the graph while gradients are wanted."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) fp32 → (..., D) fp32."""
        self_: Any = self
        if (
            not (torch.is_grad_enabled() and x.requires_grad)
            or x.dtype != torch.float32
            or self_.weight.requires_grad
        ):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        return _norm(self_, x)


def _norm(module: Any, x: Tensor) -> Tensor:
    result: Tensor = _Norm.apply(x, 1.0 + module.weight, module.eps)  # type: ignore[no-untyped-call]
    return result


class LeanGated:
    """Mixin: Gemma's feed-forward block, the gate's activation not kept."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        self_: Any = self
        if not torch.is_grad_enabled():
            return super().forward(x)  # type: ignore[misc, no-any-return]
        return _gated(self_, x)


def _gated(module: Any, x: Tensor) -> Tensor:
    product: Tensor = _Gated.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    result: Tensor = module.down_proj(product)
    return result


_LEAN: dict[tuple[type[nn.Module], type], type[nn.Module]] = {}


def _lean_class(cls: type[nn.Module], mixin: type) -> type[nn.Module]:
    """Return the subclass of ``cls`` with the mixin's forward; one per class."""
    if (cls, mixin) not in _LEAN:
        _LEAN[cls, mixin] = type(
            f"Lean{cls.__name__}", (mixin, cls), {"__module__": cls.__module__}
        )
    return _LEAN[cls, mixin]


def make_lean(model: nn.Module) -> list[str]:
    """Put lean forwards on the modules that compute the same; return the names of their classes.

    A class is taken by what it computes, not by its name: one of its modules is asked for a few
    random positions, and its own answer must be that of the lean forward.
    """
    chosen: dict[type[nn.Module], type | None] = {}
    for module in model.modules():
        cls = type(module)
        if cls not in chosen:
            chosen[cls] = _fitting(module)
        if (mixin := chosen[cls]) is not None:
            module.__class__ = _lean_class(cls, mixin)
    return [cls.__name__ for cls, mixin in chosen.items() if mixin is not None]


def _fitting(module: nn.Module) -> type | None:
    """Return the mixin whose forward agrees with the module's own."""
    candidates: list[tuple[type, Callable[[Any, Tensor], Tensor], tuple[str, ...]]] = [
        (LeanNorm, _norm, ("weight", "eps")),
        (LeanGated, _gated, ("gate_proj", "up_proj", "down_proj", "act_fn")),
    ]
    for mixin, lean, needed in candidates:
        if all(hasattr(module, name) for name in needed):
            weight = next(module.parameters())
            x = torch.randn(
                TRIED, weight.shape[-1], generator=torch.Generator().manual_seed(0)
            )
            with torch.no_grad():
                own, made = module(x), lean(module, x)
            if torch.allclose(own, made, rtol=1e-5, atol=1e-5 * float(own.abs().max())):
                return mixin
    return None
