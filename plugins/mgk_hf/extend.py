"""New tokens for a base, before anything else is done with it.

Korean words that a tokenizer cuts into many pieces become tokens of their own. Their rows of the
vocabulary's table begin as the mean of the rows of the pieces that they replace, on both ends
where these are not tied, so that the base stays close to what it was; a phase with an adapter of
type ``rows`` then trains those rows alone.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.errors import InputError

_WORD = re.compile(r" ?[^\W\d_]{2,}")
_MOST = 20_000  # candidates that are compared
_FEWEST = 3  # times that a new token must occur in the corpus


@frozen
class Extension:
    """What was added. start: id of the first new token. before, after: tokens of the corpus."""

    tokens: tuple[str, ...]
    start: int
    before: int = 0
    after: int = 0

    @property
    def saved(self) -> float:
        """Share of the corpus's tokens that the new ones save."""
        return 1 - self.after / self.before if self.before else 0.0

    def __str__(self) -> str:
        text = f"{len(self.tokens)} tokens added to the vocabulary"
        if not self.before:
            return text
        return f"{text}; the corpus takes {self.after:,} tokens instead of {self.before:,}, {self.saved:.1%} fewer"


def extend(
    model: Any, tokenizer: Any, tokens: Sequence[str], corpus: Sequence[str] = ()
) -> Extension:
    """Add tokens to tokenizer and model; tokens already in the vocabulary are skipped.

    :param corpus: texts over which the tokens saved are counted
    :raises InputError: nothing is left to add, or a token is empty
    """
    if not all(t.strip() for t in tokens):
        raise InputError("base.new_tokens: a new token is empty")
    known = tokenizer.get_vocab()
    new = [t for t in dict.fromkeys(tokens) if t not in known]
    if not new:
        raise InputError(
            "base.new_tokens: every one of these tokens is in the vocabulary already"
        )
    pieces = tokenizer(new, add_special_tokens=False)["input_ids"]
    before = _count(tokenizer, corpus)
    start = len(tokenizer)
    _add(tokenizer, new)
    _grow(model, start, pieces)
    return Extension(tuple(new), start, before, _count(tokenizer, corpus))


def _add(tokenizer: Any, tokens: Sequence[str]) -> None:
    from transformers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(t, normalized=False, single_word=False) for t in tokens]
    )


def _count(tokenizer: Any, texts: Sequence[str]) -> int:
    return (
        sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"]))
        if texts
        else 0
    )


@torch.no_grad()
def _grow(model: Any, start: int, pieces: Sequence[Sequence[int]]) -> None:
    """Give each new token the mean of its pieces' rows; ties stay ties."""
    embedding: Tensor = model.get_input_embeddings().weight
    head: Tensor = model.get_output_embeddings().weight
    ends = [embedding] if head is embedding else [embedding, head]
    rows = [
        torch.stack([end[list(ids)].float().mean(0) for ids in pieces]) for end in ends
    ]
    size = start + len(pieces)
    if size > len(embedding):
        model.resize_token_embeddings(size, mean_resizing=False)
    grown = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for end, new in zip(grown, rows, strict=False):
        end[start:size] = new.to(end)


def choose(texts: Iterable[str], tokenizer: Any, count: int) -> list[str]:
    """Return up to ``count`` beginnings of words that save most tokens over the texts.

    A word goes with the blank before it, as tokenizers cut it. Beginnings rather than words, since
    Korean particles follow without a blank; what is left of the word is counted as it is then cut.
    Greedy: the one that saves most, then the one that saves most beside it, and so on.
    """
    words = Counter(w for text in texts for w in _WORD.findall(text))
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for end in _ends(word):
            counts[word[:end]] += n
    often = sorted(
        (c for c, n in counts.items() if n >= _FEWEST),
        key=lambda c: (-counts[c] * len(c), c),
    )[:_MOST]
    return _greedy(_savings(words, set(often), tokenizer), words, count)


def _ends(word: str) -> range:
    """Return where the beginnings of a word end: after two letters, or more."""
    return range(2 + word.startswith(" "), len(word) + 1)


def _savings(
    words: Iterable[str], candidates: set[str], tokenizer: Any
) -> dict[str, dict[str, int]]:
    """Return candidate → word → tokens that the candidate saves in it, where it saves any."""
    cuts = [
        (w, w[:end], w[end:])
        for w in words
        for end in _ends(w)
        if w[:end] in candidates
    ]
    parts = sorted({part for word, _, rest in cuts for part in (word, rest) if part})
    sizes = {"": 0}
    if parts:
        sizes |= {
            p: len(ids)
            for p, ids in zip(
                parts,
                tokenizer(parts, add_special_tokens=False)["input_ids"],
                strict=True,
            )
        }
    saves: dict[str, dict[str, int]] = defaultdict(dict)
    for word, candidate, rest in cuts:
        if (saved := sizes[word] - 1 - sizes[rest]) > 0:
            saves[candidate][word] = saved
    return saves


def _greedy(
    saves: dict[str, dict[str, int]], words: Counter[str], count: int
) -> list[str]:
    """Pick by gain, recomputed only when a candidate comes up: gains can only fall as more is chosen."""
    best: dict[str, int] = defaultdict(int)  # word → tokens saved in it so far

    def gain(candidate: str) -> int:
        return sum(
            words[w] * max(0, saved - best[w]) for w, saved in saves[candidate].items()
        )

    heap = [(-gain(c), c) for c in saves]
    heapq.heapify(heap)
    chosen: list[str] = []
    while heap and len(chosen) < count:
        _, candidate = heapq.heappop(heap)
        now = gain(candidate)
        if now <= 0:
            continue
        if heap and -now > heap[0][0]:
            heapq.heappush(heap, (-now, candidate))
            continue
        chosen.append(candidate)
        for word, saved in saves[candidate].items():
            best[word] = max(best[word], saved)
    return chosen
