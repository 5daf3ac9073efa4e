"""One template object per task, used for training, scoring and generation alike.

A template makes the prompt and the answer, and parses the answer from generated text.
"""

from __future__ import annotations

from attrs import frozen

from mgk_text.extract import Extracted, extract
from mgk_text.records import LETTERS, Entry, Question

REASONING = ("<reasoning>", "</reasoning>")
_FIELDS = {
    "en-ko": ("영어", "한국어"),
    "ko-en": ("한국어", "영어"),
    "ko-definition": ("용어", "뜻"),
    "definition-ko": ("뜻", "용어"),
}


@frozen
class DictionaryTemplate:
    """One direction of a dictionary: a line with one field, a line that asks for another."""

    direction: str

    def ask(self, entry: Entry) -> str:
        """Return the prompt."""
        given, wanted = _FIELDS[self.direction]
        return f"{given}: {self._field(entry, 0)}\n{wanted}:"

    def answer(self, entry: Entry) -> str:
        """Return the answer to learn."""
        return self._field(entry, 1)

    def read(self, text: str) -> str:
        """Return the term in a generated answer: its first line, without a final full stop."""
        lines = text.strip().split("\n")
        return lines[0].strip().rstrip(".。").strip()

    def _field(self, entry: Entry, side: int) -> str:
        value: str = getattr(entry, self.direction.split("-")[side])
        return value


@frozen
class McqTemplate:
    """A question; the answer is the right option's content, its letter, or a reasoning and the letter."""

    target: str
    lists_options: bool

    def ask(self, question: Question) -> str:
        """Return the prompt."""
        listed = "".join(
            f"{letter}. {o}\n"
            for letter, o in zip(LETTERS, question.options, strict=False)
        )
        return f"문제: {question.question}\n{listed if self.lists_options else ''}정답:"

    def answer(self, question: Question) -> str:
        """Return the answer to learn."""
        if self.target == "content":
            return question.content
        if self.target == "letter":
            return question.letter
        return f"{REASONING[0]}{question.reasoning}{REASONING[1]} {question.letter}"

    def options(self, question: Question) -> tuple[str, ...]:
        """Return what is scored for each option: contents, or letters (without a reasoning)."""
        if self.target == "content":
            return question.options
        return tuple(LETTERS[: len(question.options)])

    def read(self, text: str, question: Question) -> Extracted:
        """Return which option a generated answer chose, strictly and leniently."""
        return extract(text, question.options, reasoning=self.target == "reasoning")
