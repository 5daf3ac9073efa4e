"""A tokenizer of transformers as llama.cpp's metadata: SentencePiece-like and byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import define, field, frozen

from mgk_core.contract.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""

SPACE = "\u2581"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPLITS = {
    GPT2: "gpt-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""How a byte-level tokenizer splits text before merging → llama.cpp's name for it."""


@frozen
class Vocabulary:
    """Everything that llama.cpp needs to cut text as the tokenizer does.

    model: ``llama`` (SentencePiece) or ``gpt2`` (byte-level). pre: how text is split first. scores:
    of SentencePiece, the higher the earlier merged. merges: of byte-level.
    """

    model: str
    pre: str
    tokens: Sequence[str] = field(repr=False)
    kinds: Sequence[int] = field(repr=False)
    scores: Sequence[float] = field(repr=False)
    merges: Sequence[str] = field(repr=False)
    space_prefix: bool
    begins: bool

    def describe(self, writer: Any) -> None:
        """Write the tokenizer's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        else:
            writer.add_token_merges(self.merges)
        writer.add_add_bos_token(self.begins)
        writer.add_add_eos_token(False)


@define
class _Table:
    """Tokens by id, while they are collected."""

    texts: list[str]
    kinds: list[int]

    @classmethod
    def of_size(cls, size: int) -> _Table:
        """Begin with rows that no token uses: an embedding may have more rows than there are tokens."""
        return cls([f"[PAD{i}]" for i in range(size)], [UNUSED] * size)

    def put(self, number: int, text: str, kind: int) -> None:
        """Set one token."""
        if number >= len(self.texts):
            raise InputError(
                f"--format gguf: token {text!r} has the id {number}, and the embedding"
                f" {len(self.texts)} rows"
            )
        self.texts[number], self.kinds[number] = text, kind


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Read a fast tokenizer. size: rows of the embedding.

    :raises InputError: llama.cpp has no tokenizer of this kind
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model["type"] != "BPE":
        raise InputError(
            f"--format gguf: a tokenizer of type {model['type']} is not supported (BPE is)"
        )
    sentencepiece = bool(model.get("byte_fallback"))
    table = _table(rules, tokenizer, size, sentencepiece=sentencepiece)
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _split(rules["pre_tokenizer"]),
        tokens=table.texts,
        kinds=table.kinds,
        scores=_scores(merges, model["vocab"], size) if sentencepiece else (),
        merges=() if sentencepiece else merges,
        space_prefix=_prefixes(rules),
        begins=begins,
    )


def _table(rules: Any, tokenizer: Any, size: int, *, sentencepiece: bool) -> _Table:
    table = _Table.of_size(size)
    for text, number in rules["model"]["vocab"].items():
        is_byte = sentencepiece and len(text) == 6 and text.startswith("<0x")
        table.put(number, text, BYTE if is_byte else NORMAL)
    for added in rules["added_tokens"]:
        text = added["content"]
        if added["special"]:
            table.put(added["id"], text, CONTROL)
        else:  # matched in the text itself, where spaces are spaces
            spelled = text.replace(SPACE, " ") if sentencepiece else text
            table.put(added["id"], spelled, USER_DEFINED)
    if sentencepiece and tokenizer.unk_token_id is not None:
        table.kinds[tokenizer.unk_token_id] = UNKNOWN
    return table


def _scores(merges: Sequence[str], vocabulary: Any, size: int) -> list[float]:
    """Return scores that merge in the order of the merges: minus the rank of a token's first merge.

    SentencePiece merges the neighbours whose union scores highest; a fast tokenizer those whose
    merge is listed first. All merges into one token are listed together, so the orders agree.
    """
    scores = [0.0] * size
    for rank, merge in enumerate(merges):
        number = vocabulary["".join(merge.split(" "))]
        if scores[number] == 0.0:
            scores[number] = -float(rank + 1)
    return scores


def _split(rules: Any) -> str:
    """Return llama.cpp's name for how a byte-level tokenizer splits text."""
    steps = rules["pretokenizers"] if rules["type"] == "Sequence" else [rules]
    patterns = [s["pattern"].get("Regex") for s in steps if s["type"] == "Split"]
    own = [s for s in steps if s["type"] == "ByteLevel" and s.get("use_regex", True)]
    if not patterns and own:
        patterns = [GPT2]
    if len(patterns) != 1 or patterns[0] not in SPLITS:
        raise InputError(
            "--format gguf: llama.cpp has no name here for how this tokenizer splits text"
            f" ({', '.join(map(str, patterns))[:80]}); share RUN/model instead"
        )
    return SPLITS[patterns[0]]


def _prefixes(rules: Any) -> bool:
    """Whether a space is put before a text."""
    text = json.dumps([rules["normalizer"], rules["pre_tokenizer"]])
    return (
        '"Prepend"' in text
        or '"prepend_scheme": "first"' in text
        or '"prepend_scheme": "always"' in text
    )
