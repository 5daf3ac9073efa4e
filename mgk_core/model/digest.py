"""Digests of weights: equal exactly where names, dtypes, shapes and bits are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import base_state_dict


def tensor_digest(tensor: Tensor) -> str:
    """BLAKE2b-256 of a tensor's bytes in row-major order, with dtype and shape."""
    plain = tensor.detach().to("cpu").contiguous()
    state = hashlib.blake2b(f"{plain.dtype} {tuple(plain.shape)} ".encode(), digest_size=32)
    if plain.numel():
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of a set of named tensors; order does not matter."""
    names = sorted(tensors)
    with ThreadPoolExecutor(max_workers=max(1, min(8, torch.get_num_threads()))) as pool:
        digests = list(
            pool.map(lambda n: tensor_digest(tensors[n]), names)
        )  # hashlib releases the GIL
    return hashlib.blake2b(
        json.dumps(list(zip(names, digests, strict=True))).encode(), digest_size=32
    ).hexdigest()


def base_digest(model: nn.Module) -> str:
    """Digest of the base's own weights, whatever is attached."""
    return tensors_digest(base_state_dict(model))


__all__ = ["base_digest", "tensor_digest", "tensors_digest"]
