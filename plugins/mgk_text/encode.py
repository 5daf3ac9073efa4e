"""From texts to token ids, the same way for training, scoring and generation."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from mgk_core.contract.bundle import Choice, Speaks, Tokens
from mgk_core.contract.conversation import Conversation, Message

Pair = tuple[str, str]
"""(prompt, answer); for plain text the prompt is empty and all is answer."""


@frozen(eq=False)
class Encoder:
    """A base's conversation, put to prompts and answers.

    ends: whether plain texts end with EOS. bundle: the base itself, for chats that show pictures.
    """

    conversation: Conversation = field(repr=False)
    ends: bool = False
    bundle: Speaks | None = field(default=None, repr=False)

    @property
    def head(self) -> int:
        """How many tokens the tokenizer puts before a plain text."""
        return len(self.conversation.begin)

    def prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each prompt, up to where the answer begins."""
        return self.conversation.prompts([[user(p)] for p in prompts])

    def plain(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode plain texts: all but the first token, which nothing precedes, is learnt."""
        return self.conversation.documents(texts, end=self.ends)

    def pairs(self, pairs: Sequence[Pair]) -> list[Tokens]:
        """Encode prompts with answers: the answer and its end are learnt."""
        chats = [[user(prompt), assistant(answer)] for prompt, answer in pairs]
        return [
            one for examples in self.conversation.exchanges(chats) for one in examples
        ]

    def choices(
        self, items: Sequence[tuple[str, Sequence[str], int, str]]
    ) -> list[Choice]:
        """Encode (prompt, options, index of the right one, group): what is scored."""
        chats = [[user(prompt)] for prompt, _, _, _ in items]
        made = self.conversation.options(chats, [options for _, options, _, _ in items])
        result = []
        for ids, (_, options, answer, group) in zip(made, items, strict=True):
            nbytes = tuple(len(option.encode()) for option in options)
            result.append(Choice(ids.prompt, ids.answers, answer, nbytes, group))
        return result

    def decode(self, ids: Sequence[int]) -> str:
        """Return generated ids as the text of the answer."""
        return self.conversation.read(ids)


def user(text: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}
