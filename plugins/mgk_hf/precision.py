"""Which numbers the matrix products use, chosen by what the device is good at.

Weights that adapters can change are *masters*: fp32 on a CPU, so that merging is exact. The
vocabulary's table keeps the bits it was stored in (bf16 for Gemma) and is widened block by block
where it is used: the same function, half the memory. Where the CPU multiplies bf16 in hardware
(AMX, AVX512-BF16) linear layers multiply a bf16 copy of their master, between fp32 ends.
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


class MixedLinear(nn.Linear):
    """A linear map whose master is fp32 and whose products are bf16, between fp32 ends.

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
            return nn.functional.linear(input, weight, self.bias)
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
