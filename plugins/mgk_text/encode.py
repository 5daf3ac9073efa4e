"""From texts to token ids, the same way for training, scoring and generation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from mgk_core.contract.bundle import Choice, Tokens
from mgk_core.contract.errors import InputError
from mgk_text.turns import Turns

Pair = tuple[str, str]
"""(prompt, answer); for plain text the prompt is empty and all is answer."""


@frozen(eq=False)
class Encoder:
    """A tokenizer with the turns of one style.

    Prompt and answer are tokenised apart, so that the boundary is the same wherever they meet, and
    texts never turn into special tokens, whatever they contain.
    """

    tokenizer: Any = field(repr=False)
    turns: Turns

    @classmethod
    def of(cls, tokenizer: Any, turns: Turns) -> Encoder:
        """Return an encoder; `InputError` where there is no tokenizer."""
        if tokenizer is None:
            raise InputError("this base has no tokenizer; text data needs a language model as base")
        return cls(tokenizer, turns)

    @property
    def bos(self) -> tuple[int, ...]:
        """The token that begins every example, or nothing where the tokenizer has none."""
        return () if self.tokenizer.bos_token_id is None else (self.tokenizer.bos_token_id,)

    @property
    def stop(self) -> tuple[int, ...]:
        """The tokens that end a learnt answer."""
        return self._markup(self.turns.stop)

    @property
    def stops(self) -> tuple[int, ...]:
        """Single tokens that end generation: the answer's own end, and end of sequence."""
        ends = (self.stop[0], self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ends if i is not None))

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, nothing added."""
        if not texts:
            return []
        made = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids: list[list[int]] = made["input_ids"]
        return ids

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each prompt, up to where the answer begins."""
        before, between = self._markup(self.turns.before), self._markup(self.turns.between)
        return [(*self.bos, *before, *ids, *between) for ids in self.texts(prompts)]

    def plain(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode plain texts: all but the first token, which nothing stands before, is learnt."""
        made = []
        for text, body in zip(texts, self.texts(texts), strict=True):
            ids = (*self.bos, *body)
            made.append(Tokens(ids, (-100, *ids[1:]), len(text.encode())))
        return made

    def pairs(self, pairs: Sequence[Pair]) -> list[Tokens]:
        """Encode prompts with answers: the answer and its end are learnt."""
        prompts = self.prompts([p for p, _ in pairs])
        answers = self.texts([self.turns.lead + a for _, a in pairs])
        result = []
        for prompt, answer, (_, text) in zip(prompts, answers, pairs, strict=True):
            learnt = (*answer, *self.stop)
            result.append(
                Tokens((*prompt, *learnt), (*(-100 for _ in prompt), *learnt), len(text.encode()))
            )
        return result

    def choices(self, items: Sequence[tuple[str, Sequence[str], int, str]]) -> list[Choice]:
        """Encode (prompt, options, index of the right one, group): what is scored."""
        prompts = self.prompts([p for p, _, _, _ in items])
        flat = iter(
            self.texts([self.turns.lead + o for _, options, _, _ in items for o in options])
        )
        result = []
        for prompt, (_, options, answer, group) in zip(prompts, items, strict=True):
            ids = tuple(tuple(next(flat)) for _ in options)
            result.append(
                Choice(prompt, ids, answer, tuple(len(o.encode()) for o in options), group)
            )
        return result

    def decode(self, ids: Sequence[int]) -> str:
        """Return generated ids as text, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _markup(self, text: str) -> tuple[int, ...]:
        """Return the ids of markup, in which special tokens do count."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of all that decides how a tokenizer cuts texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content: str = backend.to_str()
    else:
        content = json.dumps([type(tokenizer).__qualname__, tokenizer.get_vocab()], sort_keys=True)
    special = json.dumps(
        {k: str(v) for k, v in tokenizer.special_tokens_map.items()}, sort_keys=True
    )
    return hashlib.blake2b(f"{content}\0{special}".encode(), digest_size=16).hexdigest()
