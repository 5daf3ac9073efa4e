"""Putting questions to a run's models: the untouched base, and what the phases made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from mgk_core.contract.bundle import LanguageBundle
from mgk_core.contract.errors import InputError
from mgk_core.record.events import Sink, ignore
from mgk_core.run.rebuild import replay
from mgk_core.run.reopen import reopen
from mgk_core.run.session import Session

Turn = Mapping[str, str]
"""``{"role": "user" | "assistant", "content": text}``."""


@frozen
class Answer:
    """What the base and the final model say to one question."""

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
    """Let the base answer, bring it through the run's phases, and let it answer again.

    Answers are greedy, so the same question has the same answer.

    :raises InputError: the run's base is no language model, or it is no run directory
    """
    for question in questions:
        _check_text(question)
    session = reopen(run, without=without, base=base, sink=sink)
    turns = [[{"role": "user", "content": q}] for q in questions]
    before = [reply(session, t, tokens=tokens) for t in turns]
    replay(session, session.ledger.phases)
    after = [reply(session, t, tokens=tokens) for t in turns]
    return [Answer(q, one, other) for q, one, other in zip(questions, before, after, strict=True)]


def _check_text(text: str) -> None:
    """Refuse bytes that are no UTF-8, which a terminal or a pipe hands on as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the question {text.encode(errors='replace').decode()!r} is not UTF-8 from character {error.start + 1} on;"
            " expected UTF-8 text (iconv converts from others, such as CP949)"
        ) from None


def reply(session: Session, turns: Sequence[Turn], *, tokens: int) -> str:
    """Return what the model, as it stands, says next."""
    bundle = language(session)
    ids = encode(bundle.tokenizer, turns)
    made = bundle.generate([ids], max_new_tokens=tokens)[0]
    text: str = bundle.tokenizer.decode(made, skip_special_tokens=True)
    return text.strip()


def language(session: Session) -> LanguageBundle:
    """Return the session's bundle as one that can be talked to."""
    bundle = session.bundle
    if bundle.tokenizer is None or not isinstance(bundle, LanguageBundle):
        kind = session.config.base.type
        raise InputError(
            f"{session.run}: its base ({kind!r}) is no language model; there is nobody to ask"
        )
    return bundle


def encode(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    """Return the prompt's ids: in the tokenizer's chat template where it has one, else as plain text.

    A tokenizer whose models begin with a BOS gets one, whatever its template does.
    """
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True
        )
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    else:
        ids = list(
            tokenizer("\n".join(t["content"] for t in turns), add_special_tokens=False)["input_ids"]
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


@define(eq=False)
class Chat:
    """A conversation with a run's final model. turns: what was said so far."""

    session: Session
    tokens: int = 256
    turns: list[Turn] = field(factory=list)

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
        """Build the model. untouched: talk with the base that the run began with instead."""
        session = reopen(run, without=without, base=base, sink=sink)
        language(session)
        if not untouched:
            replay(session, session.ledger.phases)
        return cls(session, tokens)

    def say(self, text: str) -> str:
        """Say something; return the answer. Both are remembered.

        :raises InputError: the text is none
        """
        _check_text(text)
        self.turns.append({"role": "user", "content": text})
        answer = reply(self.session, self.turns, tokens=self.tokens)
        self.turns.append({"role": "assistant", "content": answer})
        return answer
