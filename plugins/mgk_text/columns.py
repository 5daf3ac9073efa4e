"""Which column of a row is what, in each known layout and as the user maps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from mgk_core.contract.errors import InputError, nearest
from mgk_text.readers import Raw
from mgk_text.records import LETTERS

_LETTER_FIELDS = {letter: (letter,) for letter in LETTERS}
_SHARED = {"specialty": ("specialty",), "group": ("topic",)}
_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "text": {"text": ("text",), **_SHARED},
    "dictionary": {"ko": ("ko",), "en": ("en",), "definition": ("definition",), **_SHARED},
    "mcq": {
        "question": ("question",), "options": ("options",), **_LETTER_FIELDS,
        "answer": ("answer",), "reasoning": ("reasoning",), **_SHARED,
    },
}  # fmt: skip
_LAYOUTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("kormedmcqa", "mcq"): {"reasoning": ("cot",), "specialty": ("subject",), "group": ()},
    ("kcd", "dictionary"): {
        "specialty": ("code", "kcd"),
        "group": ("code", "kcd"),
        "definition": (),
    },
    ("mmlu", "mcq"): {"reasoning": (), "specialty": (), "group": ()},
}
_HEADERS = {"mmlu": ("question", "A", "B", "C", "D", "answer")}


@frozen
class Columns:
    """Field → the columns that may hold it, the first that a row has counting."""

    layout: str
    names: Mapping[str, tuple[str, ...]]

    @property
    def header(self) -> Sequence[str] | None:
        """The columns of a delimited file without a header line, None where it has one."""
        return _HEADERS.get(self.layout)

    def value(self, raw: Raw, field: str) -> Any:
        """Return a field's value, None where the row has none."""
        for name in self.names.get(field, ()):
            if raw.values.get(name) is not None:
                return raw.values[name]
        return None

    def said(self, field: str) -> str:
        """Return the column's name for messages."""
        return " or ".join(self.names.get(field) or (field,))


def columns_for(kind: str, layout: str, given: Mapping[str, str]) -> Columns:
    """Return the columns of a kind of data; ``given`` (field → column) wins over the layout.

    kind: ``text``, ``dictionary`` or ``mcq``. `InputError` for a layout of another kind, or a
    field that this kind has not.
    """
    if layout != "mgk" and (layout, kind) not in _LAYOUTS:
        fits = ["mgk", *(name for name, other in _LAYOUTS if other == kind)]
        raise InputError(
            f"layout {layout!r} does not hold {kind} data; expected one of {', '.join(fits)}"
        )
    names = {**_FIELDS[kind], **_LAYOUTS.get((layout, kind), {})}
    for field, column in given.items():
        if field not in names:
            raise InputError(
                f"columns.{field}: no such field of {kind} data{nearest(field, names)}"
            )
        names[field] = (column,)
    return Columns(layout, names)
