"""Digests of weights: equal exactly where names, dtypes, shapes and bits are equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.progress import activity, track


def tensor_digest(tensor: Tensor) -> str:
    """BLAKE2b-256 of a tensor's bytes in row-major order, with dtype and shape."""
    plain = tensor.detach().to("cpu").contiguous()
    state = hashlib.blake2b(
        f"{plain.dtype} {tuple(plain.shape)} ".encode(), digest_size=32
    )
    if plain.numel():
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → `tensor_digest`, sorted by name."""
    names = sorted(tensors)
    workers = max(1, min(8, torch.get_num_threads()))
    digests: dict[str, str] = {}
    pool = ThreadPoolExecutor(max_workers=workers)  # hashlib releases the GIL
    with pool, activity("hashing weights"):
        found = pool.map(lambda n: tensor_digest(tensors[n]), names)
        for name in track(names, "tensors"):
            digests[name] = next(found)
    return digests


def combined_digest(digests: Mapping[str, str]) -> str:
    """Return one digest for a set of named digests; order does not matter."""
    pairs = [[name, digests[name]] for name in sorted(digests)]
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=32).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of a set of named tensors; order does not matter."""
    return combined_digest(tensor_digests(tensors))


def base_digest(model: nn.Module) -> str:
    """Digest of the base's own weights, whatever is attached."""
    return tensors_digest(base_state_dict(model))


__all__ = [
    "base_digest",
    "combined_digest",
    "tensor_digest",
    "tensor_digests",
    "tensors_digest",
]
