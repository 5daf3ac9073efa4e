"""How a base is spoken to: its prompts, its finished exchanges, and what ends a turn.

A bundle makes one `Conversation` from tokenizer, chat template and generation configuration.
Training data, probes, ``mgk ask``, ``mgk chat``, generation and saving all use it, so a model is
served in the markup that it was trained in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    from mgk_core.contract.bundle import Tokens

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant" | "tool", "content": text}``.

The first may have ``tools`` and an assistant's ``tool_calls``: JSON, as chat templates take them.
"""

Style = Literal["auto", "chat", "plain"]


@frozen
class Options:
    """A prompt and answers that may follow it, without the token that ends them."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@runtime_checkable
class Conversation(Protocol):
    """How one base is spoken to; fixed when a run starts and recorded with it."""

    @property
    def chat(self) -> bool:
        """Whether messages are put into turns; False: plain text, one message a line."""

    @property
    def stops(self) -> tuple[int, ...]:
        """Every token that ends a turn; generation stops at each, and the saved model lists them."""

    @property
    def begin(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text: BOS, or nothing."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides token ids: tokenizer, markup, settings."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before training, such as how thinking blocks are treated."""

    def styled(self, style: Style) -> Conversation:
        """Return the conversation of one style.

        ``auto``: turns where the base has a chat template, else plain text. ``chat``: turns; a
        base without a template gets one, which is saved with the model. ``plain``: plain text.

        :raises InputError: the template cannot be served as trained; the message lists the choices
        """

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Return the ids after which the model answers; those of ``apply_chat_template``."""

    def exchanges(self, chats: Sequence[Sequence[Message]]) -> list[list[Tokens]]:
        """Return each chat as training examples: assistant turns with their ends are learnt.

        One example a chat, unless the template renders a turn differently once others follow it
        (templates that drop earlier thinking do): then one example for each assistant turn.

        :raises InputError: a chat has no assistant turn, or its template does not keep the text
        """

    def options(
        self, chats: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]
    ) -> list[Options]:
        """Return prompts with answers to score, cut as `exchanges` cuts them."""

    def documents(self, texts: Sequence[str], *, end: bool = False) -> list[Tokens]:
        """Return plain texts as training examples; only the first token is not learnt.

        :param end: whether the tokenizer's EOS is learnt after each text
        """

    def read(self, ids: Sequence[int]) -> str:
        """Return generated ids as the answer: without special tokens and finished thinking."""

    def record(self) -> dict[str, Any]:
        """Return the markup as JSON; `restore` of it gives the same ids on any day."""

    def restore(self, record: Mapping[str, Any]) -> None:
        """Use the markup that a run has recorded."""


__all__ = ["Conversation", "Message", "Options", "Style"]
