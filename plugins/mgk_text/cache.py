"""Tokenised data, kept in this process and on disk.

The key covers the texts, the conversation (tokenizer, chat template, settings) and the format of the
file, so that nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from attrs import define
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mgk_core.contract.bundle import Tokens
from mgk_core.contract.cache import cache_directory
from mgk_text.encode import Encoder, Pair

FORMAT = 2
_KEPT = 32  # results held in this process


@define(eq=False)
class TokenCache:
    """Tokenised examples by key. on_disk: whether files are read and written too."""

    on_disk: bool = True
    hits: int = 0

    def get(
        self, encoder: Encoder, pairs: Sequence[Pair], make: Callable[[], list[Tokens]]
    ) -> list[Tokens]:
        """Return what ``make`` returns, from memory or disk where it was made before."""
        name = key(encoder, pairs)
        found = _memory.get(name)
        path = folder() / f"{name}.safetensors"
        if found is None and self.on_disk:
            found = _read(path)
        if found is not None:
            self.hits += 1
        else:
            found = make()
            if self.on_disk:
                _write(path, found)
        _remember(name, found)
        return found


def tokenised(encoder: Encoder, pairs: Sequence[Pair], cache: TokenCache) -> list[Tokens]:
    """Encode pairs of prompt and answer; pairs without a prompt are plain texts."""
    if pairs and all(not prompt for prompt, _ in pairs):
        return cache.get(encoder, pairs, lambda: encoder.plain([text for _, text in pairs]))
    return cache.get(encoder, pairs, lambda: encoder.pairs(pairs))


def key(encoder: Encoder, pairs: Sequence[Pair]) -> str:
    """Digest of all that decides the ids."""
    state = hashlib.blake2b(digest_size=20)
    state.update(json.dumps([FORMAT, encoder.conversation.digest, encoder.ends]).encode())
    for pair in pairs:
        state.update(json.dumps(pair, ensure_ascii=False).encode())
    return state.hexdigest()


def folder() -> Path:
    """Return where token files are kept: below ``$MGK_CACHE``, or the user's cache directory."""
    return cache_directory() / "tokens"


_memory: dict[str, list[Tokens]] = {}


def _remember(name: str, examples: list[Tokens]) -> None:
    _memory[name] = examples
    while len(_memory) > _KEPT:
        _memory.pop(next(iter(_memory)))


def _write(path: Path, examples: Sequence[Tokens]) -> None:
    """Write ids, lengths and where the labels begin. A cache that cannot be written is no fault."""
    tensors = {
        "ids": torch.tensor([i for e in examples for i in e.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(e.ids) for e in examples], dtype=torch.int32),
        "learnt_from": torch.tensor([e.labels.count(-100) for e in examples], dtype=torch.int32),
        "nbytes": torch.tensor([e.nbytes for e in examples], dtype=torch.int64),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            save_file(tensors, Path(work) / path.name)
            (Path(work) / path.name).replace(path)
    except OSError:
        return


def _read(path: Path) -> list[Tokens] | None:
    """Read examples back; None where there is no whole file (a damaged one is made again)."""
    if not path.is_file():
        return None
    try:
        t = {name: tensor.tolist() for name, tensor in load_file(path).items()}
        result, place = [], 0
        for length, start, nbytes in zip(t["lengths"], t["learnt_from"], t["nbytes"], strict=True):
            ids = tuple(t["ids"][place : place + length])
            result.append(Tokens(ids, (*(-100,) * start, *ids[start:]), nbytes))
            place += length
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return result
