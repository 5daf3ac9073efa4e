"""How the conformance tests' small language model is spoken to: plain text, an id for each byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgk_core.contract.bundle import Tokens
from mgk_core.contract.conversation import Conversation, Message, Options, Style

WORDS = 7


class PlainConversation:
    """Bytes modulo the number of words; one message a line."""

    chat = False
    stops: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()
    digest = "plain"
    notes: tuple[str, ...] = ()

    def styled(self, style: Style) -> Conversation:
        """Return itself: there is one style."""
        return self

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Return the ids of each chat's messages, a line each."""
        return [_ids("".join(f"{_text(m)}\n" for m in chat)) for chat in chats]

    def exchanges(self, chats: Sequence[Sequence[Message]]) -> list[list[Tokens]]:
        """Return each chat as one example whose last message is learned."""
        made = []
        for chat in chats:
            (prompt,) = self.prompts([chat[:-1]])
            answer = _ids(_text(chat[-1]))
            labels = (*(-100,) * len(prompt), *answer)
            made.append([Tokens((*prompt, *answer), labels, len(answer))])
        return made

    def options(
        self, chats: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]
    ) -> list[Options]:
        """Return prompts and the ids of each answer."""
        prompts = self.prompts(chats)
        return [
            Options(prompt, tuple(_ids(a) for a in some))
            for prompt, some in zip(prompts, answers, strict=True)
        ]

    def documents(self, texts: Sequence[str], *, end: bool = False) -> list[Tokens]:
        """Return texts as examples; the first token is not learned."""
        made = []
        for text in texts:
            ids = _ids(text)
            made.append(Tokens(ids, (-100, *ids[1:]), len(text.encode())))
        return made

    def read(self, ids: Sequence[int]) -> str:
        """Return the ids as digits."""
        return "".join(map(str, ids))

    def record(self) -> dict[str, Any]:
        """Return nothing: there is no markup."""
        return {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restore nothing."""


def _text(message: Message) -> str:
    return message["content"]


def _ids(text: str) -> tuple[int, ...]:
    return tuple(byte % WORDS for byte in text.encode())
