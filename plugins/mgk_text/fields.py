"""Takes the fields of one raw row and makes a record of them, or names what is wrong with it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from mgk_text import answers
from mgk_text.layouts import Columns
from mgk_text.records import LETTERS, Entry, Question, Text
from mgk_text.table import Raw

_MISSING = ("", "nan")  # how spreadsheets and pandas write an option that is not there


class BadRowError(ValueError):
    """One row is wrong. column: where in it."""

    def __init__(self, column: str, message: str) -> None:
        self.column = column
        super().__init__(message)


@frozen
class Fields:
    """Reads fields as clean texts. form: Unicode normal form; None leaves texts as they are."""

    columns: Columns
    form: Any

    def text(self, raw: Raw) -> Text:
        """Return a plain text."""
        return Text(self.string(raw, "text"), self.group(raw), place(raw))

    def entry(self, raw: Raw, *, definition: bool) -> Entry:
        """Return a dictionary entry; definition: whether one is needed."""
        take = self.string if definition else self.maybe
        return Entry(
            ko=self.string(raw, "ko"),
            en=self.string(raw, "en"),
            definition=take(raw, "definition"),
            specialty=self.specialty(raw),
            group=self.group(raw),
            place=place(raw),
        )

    def question(self, raw: Raw, counting: str) -> Question:
        """Return a question with its options."""
        given = self.given(raw)
        self._check_options(given.options)
        if given.value is None:
            raise self.absent(raw, "answer")
        try:
            right = answers.index(given, counting)
        except ValueError as error:
            raise BadRowError(self.columns.column("answer"), str(error)) from None
        return Question(
            question=self._asked(raw),
            options=tuple(given.options),
            answer=right,
            reasoning=self.maybe(raw, "reasoning"),
            specialty=self.specialty(raw),
            group=self.group(raw),
            place=place(raw),
        )

    def _asked(self, raw: Raw) -> str:
        """Return the question, after the context that some layouts have."""
        found = self.columns.value(raw, "context")
        parts = found if isinstance(found, (list, tuple)) else [found]
        context = [self.clean(p) for p in parts if isinstance(p, str)]
        return "\n\n".join([*context, self.string(raw, "question")])

    def given(self, raw: Raw) -> answers.Given:
        """Return a row's answer with its options, unchecked."""
        answer = self.columns.value(raw, "answer")
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        if self.columns.layout.choices:
            return answers.Given(answer, self.columns.layout.choices)
        listed = self.columns.value(raw, "options")
        if isinstance(listed, str):
            listed = self._from_text(listed)
        if isinstance(listed, Mapping) and isinstance(listed.get("text"), Sequence):
            keys = [str(k) for k in listed.get("label") or ()]
            return answers.Given(answer, self._listed(listed["text"]), keys)
        if isinstance(listed, Mapping):
            there = {str(k): v for k, v in listed.items() if not _missing(v)}
            return answers.Given(answer, self._listed(there.values()), tuple(there))
        if isinstance(listed, Sequence) and not isinstance(listed, str):
            return answers.Given(answer, *self._from_list(listed))
        return answers.Given(answer, self._by_letter(raw))

    def _from_text(self, text: str) -> Any:
        """Return the list or object that a table's cell has as JSON."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, (list, dict)):
            message = (
                f"expected a list of options, or one as JSON text, got {text!r:.60}"
            )
            raise BadRowError(self.columns.column("options"), message)
        return found

    def _from_list(self, listed: Sequence[Any]) -> tuple[list[str], list[str]]:
        """Return texts and keys of a list of texts, or of objects such as ``{key, value}``."""
        keys, texts = list[str](), list[Any]()
        for item in listed:
            if isinstance(item, Mapping):
                keys.append(str(item.get("key", item.get("label", ""))))
                texts.append(item.get("value", item.get("text")))
            else:
                texts.append(item)
        return self._listed(texts), [k for k in keys if k]

    def _listed(self, options: Any) -> list[str]:
        found = list[str]()
        for option in options:
            if not isinstance(option, (str, int, float)):
                message = f"expected texts, got {option!r:.60}"
                raise BadRowError(self.columns.column("options"), message)
            found.append(self.clean(str(option)))
        return _without_last_missing(found)

    def _by_letter(self, raw: Raw) -> list[str]:
        """Return the options of one column per letter, up to the first column that is missing."""
        found: list[str] = []
        for letter in LETTERS:
            value = self.columns.value(raw, letter)
            if value is None:
                break
            found.append(self.clean(str(value)))
        return _without_last_missing(found)

    def _check_options(self, options: Sequence[str]) -> None:
        column = self.columns.column("options")
        if len(options) < 2 or not all(options):
            message = f"expected two options or more, none empty; got {list(options)}"
            raise BadRowError(column, message)
        if len(options) > len(LETTERS):
            message = f"expected at most {len(LETTERS)} options, got {len(options)}"
            raise BadRowError(column, message)
        if len(set(options)) < len(options):
            raise BadRowError(column, "two options are the same")

    def string(self, raw: Raw, name: str) -> str:
        """Return a field that every row must have."""
        value = self.columns.value(raw, name)
        column = self.columns.column(name)
        if value is None:
            raise self.absent(raw, name)
        if not isinstance(value, str):
            raise BadRowError(column, f"expected text, got {value!r:.40}")
        text = self.clean(value)
        if not text:
            raise BadRowError(column, "is empty; fill it, or remove the row")
        return text

    def absent(self, raw: Raw, name: str) -> BadRowError:
        """Return the error for a field that a row lacks."""
        known = ", ".join(sorted(map(str, raw.values))[:12])
        message = f"missing; this row has {known}; map it with columns.{name}"
        return BadRowError(self.columns.column(name), message)

    def maybe(self, raw: Raw, name: str) -> str:
        """Return a field that a row may lack; then it is empty."""
        value = self.columns.value(raw, name)
        return "" if value is None else self.clean(str(value))

    def specialty(self, raw: Raw) -> str:
        """Return a row's specialty; of a classification the first letter, about its chapter."""
        value = self.maybe(raw, "specialty")
        return value[:1] if self.columns.layout.name == "kcd" else value

    def group(self, raw: Raw) -> str:
        """Return what keeps rows in one split; A00 and A00.1 name almost the same disease."""
        value = self.maybe(raw, "group")
        if self.columns.layout.name == "kcd":
            return value[:3]
        return f"{self.specialty(raw)}/{value}" if value else ""

    def clean(self, text: str) -> str:
        """Return a text in its normal form, without blanks around it."""
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise BadRowError(
                "",
                "contains half of a surrogate pair (\\ud800 to \\udfff), which is not a character;"
                " remove it",
            )
        return (unicodedata.normalize(self.form, text) if self.form else text).strip()


def _missing(value: Any) -> bool:
    return value is None or str(value).strip().lower() in _MISSING


def _without_last_missing(options: list[str]) -> list[str]:
    """Drop empty options at the end: files for five options leave cells of shorter ones empty."""
    while options and _missing(options[-1]):
        options.pop()
    return options


def place(raw: Raw) -> str:
    """Return a row's file and line."""
    return f"{raw.file}:{raw.line}"
