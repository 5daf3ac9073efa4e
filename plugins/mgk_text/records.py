"""What a row becomes once it is read: a text, a dictionary entry, a question, a dialogue, a pair."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attrs import frozen

from mgk_core.contract.bundle import Picture
from mgk_text.layouts import LETTERS

__all__ = [
    "LETTERS",
    "Dialogue",
    "Entry",
    "Message",
    "Preference",
    "Question",
    "Record",
    "Text",
]


@frozen
class Text:
    """One plain text. place: file and line, for messages."""

    text: str
    group: str = ""
    place: str = ""

    @property
    def key(self) -> str:
        """What keeps rows of one kind in one split."""
        return self.group or self.text

    @property
    def words(self) -> str:
        """Everything that the model reads or learns, for comparing rows."""
        return self.text


@frozen
class Entry:
    """One dictionary entry. definition may be empty where no direction needs it."""

    ko: str
    en: str
    definition: str = ""
    specialty: str = ""
    group: str = ""
    place: str = ""

    @property
    def key(self) -> str:
        """What keeps rows of one kind in one split."""
        return self.group or self.ko

    @property
    def words(self) -> str:
        """Everything that the model reads or learns, for comparing rows."""
        return f"{self.ko}\n{self.en}\n{self.definition}"


@frozen
class Question:
    """One question with its options. answer: 0-based index of the right option."""

    question: str
    options: tuple[str, ...]
    answer: int
    reasoning: str = ""
    specialty: str = ""
    group: str = ""
    place: str = ""

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.answer]

    @property
    def content(self) -> str:
        """The right option's text."""
        return self.options[self.answer]

    @property
    def key(self) -> str:
        """What keeps rows of one kind in one split."""
        return self.group or self.question

    @property
    def words(self) -> str:
        """Everything that the model reads or learns, for comparing rows."""
        return "\n".join([self.question, *self.options])


@frozen
class Message:
    """One turn. role: ``system``, ``user``, ``assistant`` or ``tool``.

    calls: the tools that an assistant calls, as JSON text.
    """

    role: str
    content: str
    calls: str = ""


Messages = tuple[Message, ...]


@frozen
class Dialogue:
    """A conversation whose assistant turns are learnt; an instruction is one with a single answer.

    tools: the row's tool definitions as JSON text, for templates that render them.
    """

    messages: Messages
    tools: str = ""
    specialty: str = ""
    group: str = ""
    place: str = ""

    @property
    def prompt(self) -> Messages:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1].content

    @property
    def key(self) -> str:
        """What keeps rows of one kind in one split: all dialogues that begin alike."""
        return self.group or _joined(_without_system(self.messages)[:1])

    @property
    def words(self) -> str:
        """What the model reads and learns, for comparing rows; many rows share a system text."""
        return _joined(_without_system(self.messages))


@frozen
class PictureDialogue(Dialogue):
    """A conversation that shows pictures; in a message's text each is a mark."""

    pictures: tuple[Picture, ...] = ()

    @property
    def key(self) -> str:
        """What keeps rows of one kind in one split: all rows of the same pictures."""
        return self.group or " ".join(p.digest for p in self.pictures) or super().key

    @property
    def words(self) -> str:
        """The pictures and the answer: one question is asked of many pictures."""
        shown = " ".join(p.digest for p in self.pictures)
        return f"{shown} {self.answer}" if shown else super().words


@frozen
class Preference:
    """Answers to one prompt, of which one is preferred. Unpaired rows have only one of the two."""

    prompt: Messages
    chosen: str
    rejected: str
    specialty: str = ""
    group: str = ""
    place: str = ""

    @property
    def paired(self) -> bool:
        """Whether both answers are there."""
        return bool(self.chosen and self.rejected)

    @property
    def key(self) -> str:
        """What keeps rows of one kind in one split."""
        return self.group or _joined(self.prompt)

    @property
    def words(self) -> str:
        """Everything that the model reads or learns, for comparing rows."""
        return (
            f"{_joined(_without_system(self.prompt))}\n{self.chosen}\n{self.rejected}"
        )


Record = Text | Entry | Question | Dialogue | Preference


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [m for m in messages if m.role != "system"]


def _joined(messages: Sequence[Message]) -> str:
    return "\n".join(m.content for m in messages)


def fingerprint(record: Record) -> bytes:
    """Return what two rows with the same content share, blanks and case aside."""
    text = " ".join(record.words.split()).casefold()
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
