"""From rendered chats to token ids: text in a message never becomes a special token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from attrs import frozen

from mgk_core.contract.conversation import Message

_OPEN, _CLOSE = "\ue000mgk", "\ue001"
"""Around the number of a special token's text while a template is rendered; private-use letters."""


@frozen(eq=False, slots=False)
class Cutter:
    """A tokenizer, and how to keep the text of its special tokens out of what people wrote."""

    tokenizer: Any

    def masked(self, messages: Sequence[Message]) -> list[Message]:
        """Replace the texts of special tokens in messages with marks; `cut` puts them back."""
        return [{**m, "content": self._masked(m["content"])} for m in messages]

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts, nothing added.

        A text without marks is cut whole, as ``apply_chat_template`` does.
        """
        whole = [i for i, text in enumerate(texts) if _OPEN not in text]
        found: dict[int, list[int]] = {}
        if whole:
            made = self.tokenizer(
                [texts[i] for i in whole], add_special_tokens=False, verbose=False
            )
            found = dict(zip(whole, made["input_ids"], strict=True))
        return [
            found[i] if i in found else self._piecewise(t) for i, t in enumerate(texts)
        ]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts in which special tokens do not count, nothing added."""
        if not texts:
            return []
        made = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
        )
        ids: list[list[int]] = made["input_ids"]
        return ids

    def first_token(self, markup: str) -> re.Match[str] | None:
        """Return where the first added token is in markup, None where it has none."""
        known = getattr(self.tokenizer, "added_tokens_decoder", {})
        texts = {*self._texts[:-1], *(str(t) for t in known.values())} - {""}
        return re.search(
            "|".join(re.escape(t) for t in sorted(texts, key=len)[::-1]), markup
        )

    def unmasked(self, text: str) -> str:
        """Put the texts of special tokens back."""
        return _MARK.sub(lambda m: self._texts[int(m[1])], text)

    def _masked(self, text: str) -> str:
        return self._special.sub(
            lambda m: f"{_OPEN}{self._texts.index(m[0])}{_CLOSE}", text
        )

    def _piecewise(self, text: str) -> list[int]:
        """Cut a text at the special tokens of its markup, as the tokenizer itself does."""
        ids: list[int] = []
        start = 0
        for match in self._special.finditer(_MARK.sub(_blank, text)):
            ids += self._piece(text[start : match.start()])
            ids.append(self.tokenizer.convert_tokens_to_ids(match[0]))
            start = match.end()
        return [*ids, *self._piece(text[start:])]

    def _piece(self, text: str) -> list[int]:
        return self.plain([self.unmasked(text)])[0] if text else []

    @cached_property
    def _texts(self) -> list[str]:
        """The texts of special tokens, the longest first, and the mark itself."""
        tokens = {str(t) for t in self.tokenizer.all_special_tokens}
        known = getattr(self.tokenizer, "added_tokens_decoder", {})
        tokens |= {str(t) for t in known.values() if getattr(t, "special", False)}
        return [*sorted(tokens - {""}, key=lambda t: (-len(t), t)), _OPEN]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(t) for t in self._texts))


_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


def _blank(match: re.Match[str]) -> str:
    """Hide a mark from the search for special tokens, at the same length."""
    return " " * len(match[0])
