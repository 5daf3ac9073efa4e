"""The models of a run that answer: the final one, and the base beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import define, field, frozen

from mgk_core.contract.conversation import Message
from mgk_core.tools.chat import Chat, language

CHUNK = 8
"""Tokens that are generated before text is sent. The prompt goes through the model again for each chunk."""

FINAL, BASE = "final", "base"


@frozen
class Piece:
    """A part of an answer. text: what is new. made: tokens so far. ended: whether the model ended its turn."""

    text: str
    made: int
    ended: bool


@define(eq=False)
class Voice:
    """One model. One answer at a time: they share the processors."""

    chat: Chat
    _lock: threading.Lock = field(factory=threading.Lock)

    def prompt(self, turns: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids after which the model answers."""
        return language(self.chat.session).conversation.prompts([turns])[0]

    def answer(self, prompt: Sequence[int], *, tokens: int) -> Iterator[Piece]:
        """Yield an answer of at most ``tokens`` tokens piece by piece, the most likely token each time."""
        bundle = language(self.chat.session)
        ids: list[int] = []
        sent = ""
        ended = False
        while not ended and len(ids) < tokens:
            wanted = min(CHUNK, tokens - len(ids))
            with self._lock:
                (made,) = bundle.generate([[*prompt, *ids]], max_new_tokens=wanted)
            ids += made
            ended = len(made) < wanted
            text = bundle.conversation.read(ids).lstrip()
            last = ended or len(ids) >= tokens
            # A letter of several bytes may be cut; it is whole after the next chunk.
            safe = (
                text.rstrip() if last else text.rstrip("\N{REPLACEMENT CHARACTER} \n")
            )
            new = safe[len(sent) :] if safe.startswith(sent) else ""
            sent += new
            if new or last:
                yield Piece(new, len(ids), ended)


def open_voices(run: Path, *, base: Path | None, both: bool) -> dict[str, Voice]:
    """Build the models. both: also the base, which takes the memory of a second model."""
    untouched = {FINAL: False, **({BASE: True} if both else {})}
    return {
        name: Voice(Chat.open(run, tokens=0, untouched=value, base=base))
        for name, value in untouched.items()
    }
