"""Asking a run's models: the untouched base, and the model after its phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import define, field, frozen

from mgk_core.contract.bundle import Speaks
from mgk_core.contract.conversation import Message
from mgk_core.contract.errors import InputError
from mgk_core.record.events import Sink, ignore
from mgk_core.run.rebuild import rebuild_base
from mgk_core.run.reopen import reopen
from mgk_core.run.session import Session


@frozen
class Answer:
    """What the base and the final model answer to one question."""

    question: str
    base: str
    final: str


def ask(
    run: Path,
    questions: Sequence[str],
    *,
    tokens: int = 128,
    without: Iterable[str] = (),
    base: Path | None = None,
    sink: Sink = ignore,
) -> list[Answer]:
    """Let the base answer, replay the run's phases, and let the final model answer.

    Answers take the most likely token each time, so the same question has the same answer.

    :raises InputError: the run's base is not a language model, or it is not a run directory
    """
    for question in questions:
        _check_text(question)
    session = reopen(run, without=without, base=base, sink=sink)
    turns = [[{"role": "user", "content": q}] for q in questions]
    before = [reply(session, t, tokens=tokens) for t in turns]
    rebuild_base(session, session.ledger.phases)
    after = [reply(session, t, tokens=tokens) for t in turns]
    return [
        Answer(q, one, other)
        for q, one, other in zip(questions, before, after, strict=True)
    ]


def _check_text(text: str) -> None:
    """Refuse bytes that are not UTF-8, which a terminal or a pipe passes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the question {text.encode(errors='replace').decode()!r} is not UTF-8 from character {error.start + 1};"
            " expected UTF-8 text (iconv converts from others, such as CP949)"
        ) from None


def reply(session: Session, turns: Sequence[Message], *, tokens: int) -> str:
    """Return what the current model answers."""
    bundle = language(session)
    prompt = bundle.conversation.prompts([turns])[0]
    made = bundle.generate([prompt], max_new_tokens=tokens)[0]
    return bundle.conversation.read(made).strip()


def language(session: Session) -> Speaks:
    """Return the session's bundle as one that answers."""
    bundle = session.bundle
    if bundle.tokenizer is None or not isinstance(bundle, Speaks):
        kind = session.config.base.type
        raise InputError(
            f"{session.run}: its base ({kind!r}) is not a language model, so it cannot answer"
        )
    return bundle


@define(eq=False)
class Chat:
    """A chat with a run's final model. turns: all messages so far."""

    session: Session
    tokens: int = 256
    turns: list[Message] = field(factory=list)

    @classmethod
    def open(
        cls,
        run: Path,
        *,
        tokens: int,
        untouched: bool,
        without: Iterable[str] = (),
        base: Path | None = None,
        sink: Sink = ignore,
    ) -> Chat:
        """Build the model. untouched: chat with the base that the run began with instead."""
        session = reopen(run, without=without, base=base, sink=sink)
        language(session)
        if not untouched:
            rebuild_base(session, session.ledger.phases)
        return cls(session, tokens)

    def say(self, text: str) -> str:
        """Send a message and return the answer. Both are remembered.

        :raises InputError: the text is not UTF-8
        """
        _check_text(text)
        self.turns.append({"role": "user", "content": text})
        answer = reply(self.session, self.turns, tokens=self.tokens)
        self.turns.append({"role": "assistant", "content": answer})
        return answer
