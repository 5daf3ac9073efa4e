"""What a row becomes once it was read: a text, a dictionary entry, a question."""

from __future__ import annotations

from attrs import frozen

LETTERS = "ABCDEFGHIJ"


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


Record = Text | Entry | Question
