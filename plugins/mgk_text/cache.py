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
from typing import Any

import torch
from attrs import define, frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mgk_core.contract.bundle import Tokens
from mgk_core.contract.cache import cache_directory
from mgk_core.contract.conversation import Message
from mgk_text.encode import Encoder, Pair

FORMAT = 3
IGNORED = -100  # the label of what is not learnt
_KEPT = 32  # results held in this process


Chats = Sequence[Sequence[Message]]
Groups = list[list[Tokens]]
"""The examples that each item gave: one, or one for each answer of a chat."""


@frozen
class Learnt:
    """Training examples, and the file and line that each came from."""

    examples: list[Tokens]
    places: list[str]


@define(eq=False)
class TokenCache:
    """Tokenised examples by key. on_disk: whether files are read and written too."""

    on_disk: bool = True
    hits: int = 0

    def get(
        self, encoder: Encoder, items: Sequence[Any], make: Callable[[], Groups]
    ) -> Groups:
        """Return what ``make`` returns, from memory or disk if it was made before."""
        name = key(encoder, items)
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

    def exchanges(
        self, encoder: Encoder, chats: Chats, places: Sequence[str]
    ) -> Learnt:
        """Encode whole chats; a place for every example that one of them gives."""
        groups = self.get(encoder, chats, lambda: encoder.conversation.exchanges(chats))
        examples = [example for group in groups for example in group]
        repeated = [
            place for place, group in zip(places, groups, strict=True) for _ in group
        ]
        return Learnt(examples, repeated)


def tokenised(
    encoder: Encoder, pairs: Sequence[Pair], cache: TokenCache
) -> list[Tokens]:
    """Encode pairs of prompt and answer; pairs without a prompt are plain texts."""

    def make() -> Groups:
        plain = bool(pairs) and all(not prompt for prompt, _ in pairs)
        made = (
            encoder.plain([text for _, text in pairs])
            if plain
            else encoder.pairs(pairs)
        )
        return [[example] for example in made]

    return [example for group in cache.get(encoder, pairs, make) for example in group]


def key(encoder: Encoder, items: Sequence[Any]) -> str:
    """Digest of all that decides the ids."""
    state = hashlib.blake2b(digest_size=20)
    state.update(
        json.dumps([FORMAT, encoder.conversation.digest, encoder.ends]).encode()
    )
    for item in items:
        state.update(json.dumps(item, ensure_ascii=False).encode())
    return state.hexdigest()


def folder() -> Path:
    """Return where token files are kept: below ``$MGK_CACHE``, or the user's cache directory."""
    return cache_directory() / "tokens"


_memory: dict[str, Groups] = {}


def _remember(name: str, examples: Groups) -> None:
    _memory[name] = examples
    while len(_memory) > _KEPT:
        _memory.pop(next(iter(_memory)))


def _write(path: Path, groups: Groups) -> None:
    """Write ids, lengths and which ids are learnt. Failing to write a cache is not an error."""
    examples = [example for group in groups for example in group]
    learnt = [label != IGNORED for e in examples for label in e.labels]
    tensors = {
        "groups": torch.tensor([len(group) for group in groups], dtype=torch.int32),
        "ids": torch.tensor([i for e in examples for i in e.ids], dtype=torch.int32),
        "lengths": torch.tensor([len(e.ids) for e in examples], dtype=torch.int32),
        "learnt": torch.tensor(learnt, dtype=torch.uint8),
        "nbytes": torch.tensor([e.nbytes for e in examples], dtype=torch.int64),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            save_file(tensors, Path(work) / path.name)
            (Path(work) / path.name).replace(path)
    except OSError:
        return


def _read(path: Path) -> Groups | None:
    """Read examples; None if there is no whole file (a damaged one is made again)."""
    if not path.is_file():
        return None
    try:
        t = {name: tensor.tolist() for name, tensor in load_file(path).items()}
        examples = iter(_examples(t))
        return [[next(examples) for _ in range(count)] for count in t["groups"]]
    except (
        SafetensorError,
        OSError,
        KeyError,
        ValueError,
        StopIteration,
        RuntimeError,
    ):
        return None


def _examples(t: dict[str, list[int]]) -> list[Tokens]:
    found, start = list[Tokens](), 0
    for length, nbytes in zip(t["lengths"], t["nbytes"], strict=True):
        end = start + length
        ids = tuple(t["ids"][start:end])
        learnt = t["learnt"][start:end]
        labels = tuple(
            i if known else IGNORED for i, known in zip(ids, learnt, strict=True)
        )
        found.append(Tokens(ids, labels, nbytes))
        start = end
    return found
