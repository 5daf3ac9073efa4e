"""Which numbers the matrix products use, chosen by what the device is good at.

Weights that adapters can change are *masters*: fp32 on a CPU, so that merging is exact. The
vocabulary's table keeps the bits it was stored in (bf16 for Gemma) and is widened block by block
where it is used: the same function, half the memory. Where the CPU multiplies bf16 in hardware
(AMX, AVX512-BF16) linear layers multiply a bf16 copy of their master, between fp32 ends.

With ``dtype = "stored"`` the masters of linear layers are the 16 bits of the file, left where they are: in
its memory map, of which the system keeps as much in memory as there is room for. Products are the
same as above: bf16 of those very bits, or fp32 of rows that are widened block by block. What a merge
cannot round into 16 bits is the weight's residual, as it is for any 16-bit base.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mgk_core.contract.progress import activity, track
from mgk_hf.cpu.lean import make_lean

Compute = Literal["float32", "bfloat16"]
NARROW = (torch.bfloat16, torch.float16)

_exact: ContextVar[bool] = ContextVar("mgk_hf_exact", default=False)


@contextmanager
def exact() -> Iterator[None]:
    """Multiply the masters inside the block, whatever the policy is: for verifying merges."""
    token = _exact.set(True)
    try:
        yield
    finally:
        _exact.reset(token)


def best_compute(device: torch.device) -> Compute:
    """Return what multiplies fastest at no loss that matters.

    Measured on Gemma 3 270M: with AMX bf16 products are 4–7 times as fast as fp32; on a CPU that
    has neither AMX nor AVX512-BF16 they run at a third of fp32's speed, since they are emulated.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if device.type != "cpu":
        return "float32"
    able = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "bfloat16" if able and _cpu_has("amx_tile", "avx512_bf16") else "float32"


def give_back_memory() -> None:
    """Return to the system what loading has freed: glibc keeps it (200 MB for Gemma 3 270M)."""
    trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None)
        if sys.platform == "linux"
        else None
    )
    if trim is not None:
        trim(0)


def _cpu_has(*features: str) -> bool:
    """Ask torch by the names it uses; a version that does not know a name has not got the feature."""
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in features)
    return any(bool(check()) for check in checks if callable(check))


def apply_policy(
    model: nn.Module, compute: Compute, *, masters: torch.dtype | None
) -> None:
    """Bring a loaded model to its policy, in place.

    masters: dtype of every floating parameter but the vocabulary's tables; None: leave all as
    loaded (CUDA, quantized bases). Tables narrower than their surroundings give and take
    wide numbers from then on.
    """
    if masters is None:
        return
    tables = _tables(model)
    _convert(model, masters, keep={id(t.weight) for t in tables})
    for table in tables:
        if table.weight.dtype != masters:
            _widen(table)
    if compute == "bfloat16" and masters == torch.float32:
        make_lean(model)
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = MixedLinear


def keep_stored(model: nn.Module, compute: Compute) -> None:
    """Leave 16-bit tables and linear weights as they were loaded; all else is fp32, and so is what flows between.

    Nothing is copied: weights in a memory-mapped file stay there.
    """
    tables = [t for t in _tables(model) if t.weight.dtype in NARROW]
    layers = [
        m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype in NARROW
    ]
    kept = {id(m.weight) for m in (*tables, *layers)}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.float()
    for table in tables:
        _widen(table)
    stored = [m for m in layers if type(m) is nn.Linear]  # an output head is a table
    for module in stored:
        module.__class__ = StoredLinear
    if compute == "bfloat16":
        make_lean(model)
        for module in stored:
            if module.weight.dtype == torch.bfloat16:  # fp16 would need a copy
                module.__class__ = MixedLinear


def _convert(model: nn.Module, dtype: torch.dtype, keep: set[int]) -> None:
    tensors = [
        t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()
    ]
    with activity("converting weights"):
        for tensor in track(tensors, "tensors"):
            # What keeps its dtype is copied: one tensor left in the mapped file keeps all of it resident.
            tensor.data = (
                tensor.data.clone() if id(tensor) in keep else tensor.data.to(dtype)
            )


def _tables(model: nn.Module) -> list[Any]:
    """Return the modules that hold the vocabulary: input embedding and output head."""
    found = (
        getattr(model, name, lambda: None)()
        for name in ("get_input_embeddings", "get_output_embeddings")
    )
    return [m for m in found if isinstance(m, (nn.Embedding, nn.Linear))]


def _widen(table: nn.Module) -> None:
    if isinstance(table, nn.Linear):
        table.__class__ = WideLinear
    else:
        table.__class__ = wide_embedding(type(table))
    # The true scale, √D, was rounded when the module was made in bf16.
    if (scalar := getattr(table, "scalar_embed_scale", None)) is not None:
        device = next(table.parameters()).device
        table.register_buffer(
            "embed_scale", torch.tensor(float(scalar), device=device), persistent=False
        )


WIDENED = 512
"""Rows of a vocabulary that are widened at once: 1.3 MB for Gemma 3 270M."""


class WideLinear(nn.Linear):
    """A linear map stored in few bits that gives fp32: the weight is widened block by block."""

    computes = nn.Linear
    block = 4096

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(..., in) → (..., out) fp32."""
        if input.dtype == self.weight.dtype:
            return nn.functional.linear(input, self.weight, self.bias)
        x = input.float()
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            out = torch.cat(
                [x @ w.to(x.dtype).t() for w in torch.split(self.weight, self.block)],
                -1,
            )
        else:
            out = self._widened(x)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def _widened(self, x: Tensor) -> Tensor:
        """Widen into one buffer that stays in the processor's cache: five times as fast for a few rows."""
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(rows.shape[0], self.weight.shape[0])
        wide = rows.new_empty(min(WIDENED, self.weight.shape[0]), rows.shape[1])
        for place, part in zip(
            torch.split(out, WIDENED, 1), torch.split(self.weight, WIDENED), strict=True
        ):
            place.copy_(rows @ wide[: len(part)].copy_(part).t())
        return out.view(*x.shape[:-1], -1)


class _WideEmbedding:
    """Mixin: looked-up rows become fp32 before anything is computed with them."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(...) → (..., width) fp32, times the embedding's scale where it has one."""
        self_: Any = self
        rows = nn.functional.embedding(
            input_ids, self_.weight, self_.padding_idx
        ).float()
        scale = getattr(self_, "embed_scale", None)
        return rows if scale is None else rows * scale


_WIDE: dict[type[nn.Module], type[nn.Module]] = {}


def wide_embedding(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of an embedding's class whose output is fp32; one per class."""
    if cls not in _WIDE:
        _WIDE[cls] = type(
            f"Wide{cls.__name__}", (_WideEmbedding, cls), {"__module__": cls.__module__}
        )
    return _WIDE[cls]


class _Widened(torch.autograd.Function):
    """y = x Wᵀ in x's dtype of a frozen W in 16 bits, its rows widened block by block in both directions.

    Autograd would keep the widened weight of every layer until the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(len(rows), len(weight))
        wide = rows.new_empty(min(_block(weight), len(weight)), weight.shape[1])
        parts = torch.split(weight, len(wide))
        for place, part in zip(torch.split(out, len(wide), 1), parts, strict=True):
            place.copy_(rows @ wide[: len(part)].copy_(part).t())
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        rows = grads[0].reshape(-1, len(weight))
        total = rows.new_zeros(len(rows), weight.shape[1])
        wide = rows.new_empty(min(_block(weight), len(weight)), weight.shape[1])
        parts = torch.split(weight, len(wide))
        for g, part in zip(torch.split(rows, len(wide), 1), parts, strict=True):
            total.addmm_(g, wide[: len(part)].copy_(part))
        return total.view(*grads[0].shape[:-1], -1), None


def _block(weight: Tensor) -> int:
    """Return how many rows of a weight are widened at once: 4 MB."""
    return max(1, (1 << 20) // weight.shape[1])


def widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in x's dtype. x: (..., in), weight: (out, in) in any dtype; only x gets a gradient where W is frozen."""
    if weight.dtype == x.dtype or weight.requires_grad:
        return nn.functional.linear(x, weight.to(x.dtype), bias)
    out: Tensor = _Widened.apply(x, weight)  # type: ignore[no-untyped-call]
    return out if bias is None else out + bias


class StoredLinear(nn.Linear):
    """A linear map whose frozen master stays in the 16 bits of its file, between wider ends."""

    computes = nn.Linear

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(..., in) → (..., out), in the input's dtype."""
        return widened(input, self.weight, self.bias)


class MixedLinear(nn.Linear):
    """A linear map whose master is fp32, or bf16 as it is stored, and whose products are bf16, between fp32 ends.

    computes: what this forward computes, rounding aside, for code that adapts modules by what
    they are.
    """

    computes = nn.Linear
    _narrow: Tensor | None = None
    _narrow_of: tuple[int, int] = (0, -1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(..., in) fp32 → (..., out) fp32."""
        weight = self.weight
        own = isinstance(weight, nn.Parameter)
        if _exact.get() or (own and weight.requires_grad):
            return widened(input, weight, self.bias)
        # An adapter may put a tensor in the weight's place for one call: never cached.
        narrow = self.narrow() if own else weight.to(torch.bfloat16)
        out = nn.functional.linear(input.to(torch.bfloat16), narrow).to(input.dtype)
        return out if self.bias is None else out + self.bias

    def narrow(self) -> Tensor:
        """Return the bf16 copy of the master, recomputed whenever the master has changed."""
        state = (self.weight.data_ptr(), self.weight._version)  # noqa: SLF001 - torch has no public name for it
        if self._narrow is None or self._narrow_of != state:
            # In __dict__, so that it is neither saved nor moved as part of the model.
            self.__dict__["_narrow"] = self.weight.detach().to(torch.bfloat16)
            self.__dict__["_narrow_of"] = state
        assert self._narrow is not None  # noqa: S101 - made above
        return self._narrow

    def __getstate__(self) -> dict[str, Any]:
        """Leave the copy out of pickles and deep copies."""
        return {
            k: v for k, v in self.__dict__.items() if k not in {"_narrow", "_narrow_of"}
        }
