"""Quantized bases through bitsandbytes: loading them, and the weights that their packed ones stand for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.contract.errors import EnvironmentFault
from mgk_hf.bars import quiet_bitsandbytes


def settings(kind: str, *, double: bool = False) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs for ``int8`` or ``nf4``; nothing for ``none``.

    double: quantize nf4's scales as well, one of 32 bits for 64 weights (Dettmers et al. 2023, QLoRA,
    arXiv 2305.14314, section 3).

    :raises EnvironmentFault: bitsandbytes is not installed
    """
    if kind == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise EnvironmentFault(
            f"base.quantize = {kind!r} needs bitsandbytes: pip install 'mgk[quantized]'"
        )
    from transformers import BitsAndBytesConfig

    quiet_bitsandbytes()

    if kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=double,
    )
    return {"quantization_config": config}


def keep_as_stored(model: nn.Module) -> None:
    """Keep bitsandbytes from changing the layout of 4-bit weights where a CPU multiplies bf16.

    It does so in the first forward pass outside training, and back in the next training step; a frozen
    base has one set of bits, by which it is known.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.__dict__["support_avx512bf16_for_cpu"] = False


def is_quantized(model: nn.Module) -> bool:
    """Return whether any weight of the model is packed."""
    return any(is_packed(module) for module in model.modules())


def is_packed(module: nn.Module) -> bool:
    """Return whether a module's weight is packed by bitsandbytes."""
    weight = getattr(module, "weight", None)
    return (
        hasattr(weight, "quant_state")
        or getattr(weight, "CB", None) is not None
        or hasattr(weight, "SCB")
    )


@torch.no_grad()
def dequantize(module: nn.Module) -> Tensor:
    """Return Q(W) (out, in) fp32 of one bitsandbytes module."""
    import bitsandbytes

    weight: Any = module.weight
    whole: Tensor
    if getattr(weight, "quant_state", None) is not None:
        data, state = weight.data, weight.quant_state
        # CPUs with AVX512-BF16 repack the weight at the first forward pass.
        if getattr(state, "packing_format_for_cpu", False):
            unpacked = bitsandbytes.functional._convert_weight_packed_for_cpu_inverse  # noqa: SLF001 - the only way back
            data, state = unpacked(data, state)
        whole = bitsandbytes.functional.dequantize_4bit(data, state)
        return whole.float()
    cached: Any = getattr(module, "state", None)
    packed = (
        weight.CB
        if getattr(weight, "CB", None) is not None
        else getattr(cached, "CB", None)
    )
    scale = (
        weight.SCB
        if getattr(weight, "SCB", None) is not None
        else getattr(cached, "SCB", None)
    )
    packed = weight.data if packed is None else packed
    if scale is None:
        raise EnvironmentFault("an int8 weight has lost its scales; reload the base")
    whole = packed.float() * (scale.float()[:, None] / 127)
    return whole


@torch.no_grad()
def pack(weight: Tensor, like: nn.Module) -> Any:
    """Return a Parameter that holds ``weight`` (out, in) packed as the one of ``like`` is; the same bits each time."""
    import bitsandbytes

    old: Any = like.weight
    state = getattr(old, "quant_state", None)
    if state is None:
        # Numbers that are on a GPU already would be taken for packed ones.
        fresh: Any = bitsandbytes.nn.Int8Params(
            weight.cpu(), requires_grad=False, has_fp16_weights=False
        )
    else:
        fresh = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, blocksize=state.blocksize, compress_statistics=state.nested,
            quant_type=state.quant_type, quant_storage=old.dtype,
        )  # fmt: skip
    return fresh.to(old.device)


def forget_quantizer(model: Any) -> None:
    """Remove transformers' marks of a quantizer from a model whose weights are plain tensors.

    GGUF files are dequantized on loading, packed weights by a merge; ``save_pretrained`` refuses while the marks are there.
    """
    model.hf_quantizer = None
    model.is_quantized = False
    for owner, name in (
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
