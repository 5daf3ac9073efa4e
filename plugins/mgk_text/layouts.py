"""The layouts that people have their data in, and how a file is recognised as one of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from mgk_core.contract.errors import InputError, nearest
from mgk_text.table import Raw, Table

LETTERS = "ABCDEFGHIJ"
AUTO = "auto"

Names = dict[str, tuple[str, ...]]
_IDS = ("id", "idx", "index", "uuid")  # columns that nobody expects to be learnt
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@frozen
class Layout:
    """One layout. fields: field → the columns that may have it, the first that a row has counting.

    shown_by: columns that must all be there; ``a|b`` is either. answers: how it counts them.
    choices: the options of every question, where the layout fixes them.
    """

    name: str
    title: str
    kind: str
    shown_by: tuple[str, ...]
    fields: Names
    answers: str = AUTO
    choices: tuple[str, ...] = ()


def _letters() -> Names:
    found: Names = {}
    for number, letter in enumerate(LETTERS, 1):
        names = (letter, f"option_{letter}", f"option{letter}", f"op{letter}")
        numbered = (
            f"option{number}",
            f"option_{number}",
            f"choice{number}",
            f"choice_{number}",
        )
        found[letter] = (*names, *numbered)
    return found


_ANSWERS = ("answer", "answer_idx", "answer_index", "answerkey", "cop", "label", "정답")
_SHARED: Names = {"specialty": ("specialty",), "group": ("topic",)}
_QUESTION: Names = {
    "context": ("context", "passage", "article", "paragraph", "지문"),
    "question": ("question", "question_stem", "ctx", "문제", "질문"),
    "options": ("options", "option", "choices", "endings", "보기"),
    **_letters(),
    "answer": _ANSWERS,
    "reasoning": ("reasoning",),
    **_SHARED,
}
_PROMPT = ("prompt", "instruction", "question", "query", "input", "질문")
_INSTRUCTION: Names = {
    "system": ("system", "system_prompt"),
    "prompt": _PROMPT,
    "input": (),
    "completion": ("completion", "response", "output", "answer", "답변"),
    "history": ("history",),
    **_SHARED,
}
_CHAT: Names = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    **_SHARED,
}
_PREFERENCE: Names = {
    "system": ("system", "system_prompt"),
    "prompt": (*_PROMPT, "conversations"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "completion": ("completion", "response", "output"),
    "label": ("label",),
    **_SHARED,
}
_KO = ("ko", "translation.ko", "korean", "한국어", "한글", "국문")
_EN = ("en", "translation.en", "english", "영어", "영문")
_ENTRY: Names = {"ko": _KO, "en": _EN, "definition": ("definition",), **_SHARED}
_CODE = ("code", "kcd", "코드", "질병분류코드", "상병코드")

# The first layout whose columns a file has is taken: the more specific come first.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "kormedmcqa", "KorMedMCQA", "mcq", ("question", "A", "B", "answer", "cot|q_number"),
        {**_QUESTION, "reasoning": ("cot",), "specialty": ("subject",), "group": ()}, "1",
    ),
    Layout(
        "kmmlu", "KMMLU", "mcq", ("question", "A", "B", "answer", "category|human accuracy"),
        {**_QUESTION, "specialty": ("category",), "group": ()}, "1",
    ),
    Layout(
        "medqa", "MedQA", "mcq", ("question", "options", "answer_idx"),
        {**_QUESTION, "answer": ("answer_idx",), "specialty": ("meta_info",), "group": ()},
        "letter",
    ),
    Layout(
        "medmcqa", "MedMCQA", "mcq", ("question", "opa", "opb", "cop"),
        {**_QUESTION, "answer": ("cop",), "reasoning": ("exp",),
         "specialty": ("subject_name",), "group": ()},
    ),
    Layout(
        "pubmedqa", "PubMedQA", "mcq", ("question", "final_decision"),
        {**_QUESTION, "context": ("context.contexts", "contexts", "context"),
         "answer": ("final_decision",), "reasoning": ("long_answer",), "group": ()},
        "text", ("yes", "no", "maybe"),
    ),
    Layout(
        "arc", "ARC", "mcq", ("question|question_stem", "choices", "answerkey"),
        {**_QUESTION, "options": ("choices",), "answer": ("answerkey",), "group": ()},
    ),
    Layout(
        "mmlu", "MMLU", "mcq", ("question", "choices", "answer", "subject"),
        {**_QUESTION, "options": ("choices",), "reasoning": (), "specialty": ("subject",),
         "group": ()},
        "0",
    ),
    Layout(
        "mgk", "multiple choice", "mcq",
        ("question|question_stem|ctx|문제|질문",
         "options|option|choices|endings|보기|A|opa|option_a|optiona|option1|choice1|option_1|choice_1",
         "|".join(_ANSWERS)),
        _QUESTION,
    ),
    Layout(
        "preference", "preference pairs", "preference", ("chosen", "rejected"), _PREFERENCE,
    ),
    Layout(
        "unpaired", "labelled answers", "preference",
        ("|".join(_PROMPT), "completion|response|output", "label"), _PREFERENCE,
    ),
    Layout(
        "images", "chats with pictures", "image-chat",
        ("messages|conversations", "images|image|pictures|picture"),
        {**_CHAT, "images": ("images", "image", "pictures", "picture")},
    ),
    Layout("messages", "chat messages", "chat", ("messages",), _CHAT),
    Layout(
        "sharegpt", "ShareGPT", "chat", ("conversations|conversation|dialogue|dialog",), _CHAT,
    ),
    Layout(
        "alpaca", "Alpaca", "instruction", ("instruction", "output"),
        {**_INSTRUCTION, "prompt": ("instruction",), "input": ("input",),
         "completion": ("output",)},
    ),
    Layout(
        "dolly", "Dolly", "instruction", ("instruction", "response"),
        {**_INSTRUCTION, "prompt": ("instruction",), "input": ("context", "input"),
         "completion": ("response",), "specialty": ("category",)},
    ),
    Layout(
        "prompt-completion", "prompt and completion", "instruction", ("prompt", "completion"),
        _INSTRUCTION,
    ),
    Layout(
        "question-answer", "questions with answers", "instruction",
        ("|".join(_PROMPT), "completion|response|output|answer|답변"), _INSTRUCTION,
    ),
    Layout(
        "kcd", "a classification (KCD)", "dictionary",
        ("|".join(_CODE), "en|영문명|영문명칭", "ko|한글명|한글명칭"),
        {"ko": ("ko", "한글명", "한글명칭"), "en": ("en", "영문명", "영문명칭"),
         "definition": (), "specialty": _CODE, "group": _CODE},
    ),
    Layout("mgk", "a dictionary", "dictionary", ("|".join(_KO), "|".join((*_EN, "definition"))), _ENTRY),
    Layout(
        "mgk", "plain text", "text", ("text|content|document|본문",),
        {"text": ("text", "content", "document", "본문"), **_SHARED},
    ),
)  # fmt: skip

NAMES = (AUTO, *dict.fromkeys(layout.name for layout in LAYOUTS))
KINDS = tuple(dict.fromkeys(layout.kind for layout in LAYOUTS))


def known_columns(given: Mapping[str, str]) -> frozenset[str]:
    """Return every column name of every layout, in lower case, with those that the user maps.

    Single letters are left out: a row of data may well be ``a,b``.
    """
    found = {column.lower() for column in given.values()}
    for layout in LAYOUTS:
        for names in layout.fields.values():
            found.update(name.lower() for name in names)
        for need in layout.shown_by:
            found.update(need.lower().split("|"))
    return frozenset(name for name in found if len(name) > 1)


def recognise(columns: Collection[str], kinds: Sequence[str] = KINDS) -> Layout | None:
    """Return the most specific layout whose columns are all there; None: no layout fits."""
    there = {name.lower() for name in columns}
    for layout in LAYOUTS:
        needs = (set(need.lower().split("|")) for need in layout.shown_by)
        if layout.kind in kinds and all(need & there for need in needs):
            return layout
    return None


def named(name: str, kinds: Sequence[str]) -> Layout:
    """Return the layout that a setting names; `InputError` if it is of another kind."""
    for layout in LAYOUTS:
        if layout.name == name and layout.kind in kinds:
            return layout
    fitting = [AUTO, *dict.fromkeys(x.name for x in LAYOUTS if x.kind in kinds)]
    raise InputError(
        f"layout {name!r} does not hold {' or '.join(kinds)} data;"
        f" expected one of {', '.join(fitting)}"
    )


def default(kind: str) -> Layout:
    """Return mgk's own layout of a kind: what rows are read by where no other fits."""
    last = [layout for layout in LAYOUTS if layout.kind == kind]
    return next((layout for layout in last if layout.name == "mgk"), last[-1])


@frozen
class Columns:
    """Which columns of one file are which field. names: as the file spells them.

    there: the columns that the file has.
    """

    layout: Layout
    names: Names
    there: frozenset[str] = field(default=frozenset())

    @classmethod
    def of(cls, layout: Layout, table: Table, given: Mapping[str, str]) -> Columns:
        """Find a layout's columns in a table; what the user maps (field → column) comes first."""
        spelt = {name.lower(): name for name in table.columns}
        names: Names = {}
        for name, options in layout.fields.items():
            names[name] = tuple(spelt.get(o.lower(), o) for o in options)
        for name, column in given.items():
            meant = name if name in names else _field_of(layout, name)
            if meant is None:
                hint = nearest(name, names)
                raise InputError(
                    f"columns.{name}: {layout.kind} data have no such field{hint};"
                    f" they have {', '.join(names)}"
                )
            names[meant] = (spelt.get(column.lower(), column),)
        return cls(layout, names, frozenset(table.columns))

    def value(self, raw: Raw, name: str) -> Any:
        """Return a field's value; None if the row has none, or only a NaN."""
        for column in self.names.get(name, ()):
            found = _at(raw.values, column)
            if found is not None and found == found:  # noqa: PLR0124 - NaN is not equal to itself
                return found
        return None

    def column(self, name: str) -> str:
        """Return a field's column for messages: the one that the file has, or what it may be."""
        names = self.names.get(name) or (name,)
        there = [n for n in names if n in self.there]
        return " or ".join(there or names[:3])

    def used(self, table: Table) -> str:
        """Return the columns that are read, with what is inside them: ``options{A–D}``."""
        found = list[str]()
        for options in self.names.values():
            described = ((o, _inside(table, o)) for o in options)
            found += [o + inside for o, inside in described if inside is not None][:1]
        return ", ".join(_letters_together(list(dict.fromkeys(found))))

    def unused(self, table: Table) -> list[str]:
        """Return the columns that have values which no field takes."""
        taken, filled = set(_IDS), dict[str, None]()
        for raw in table.rows[:100]:
            filled |= dict.fromkeys(k for k, v in raw.values.items() if v not in _EMPTY)
            for names in self.names.values():
                first = next((n for n in names if _at(raw.values, n) is not None), "")
                taken |= {first, first.partition(".")[0]}
        return [name for name in filled if name not in taken]


def _field_of(layout: Layout, name: str) -> str | None:
    """Return the field that a usual column name stands for: ``question`` is an instruction's prompt."""
    found = [f for f, columns in layout.fields.items() if name.lower() in columns]
    return found[0] if len(found) == 1 else None


def described(table: Table) -> list[str]:
    """Return a table's columns; of a nested one ``data.text`` and whatever else is in it."""
    found = list[str]()
    for column in table.columns:
        values = (raw.values.get(column) for raw in table.rows[:100])
        inner = next((v for v in values if isinstance(v, Mapping)), None)
        found += [f"{column}.{key}" for key in inner] if inner else [column]
    return found


def _at(values: Mapping[str, Any], column: str) -> Any:
    """Return a column's value; ``data.text`` is ``text`` inside ``data``."""
    if column in values or "." not in column:
        return values.get(column)
    found: Any = values
    for part in column.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _inside(table: Table, column: str) -> str | None:
    """Describe what one value of a column consists of; None if no row has one."""
    values = (_at(raw.values, column) for raw in table.rows[:100])
    value = next((v for v in values if v is not None), None)
    if value is None:
        return None
    if isinstance(value, Mapping):
        keys = [str(k) for k in value]
        if len(keys) > 1 and all(len(k) == 1 for k in keys):
            return f"{{{keys[0]}–{keys[-1]}}}"
        return f"{{{', '.join(keys)}}}"
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        return f"[{', '.join(value[0])}]"
    return ""


def _letters_together(columns: list[str]) -> list[str]:
    """Write A, B, C, D as A–D."""
    letters = [c for c in columns if len(c) == 1]
    if len(letters) < 2:
        return columns
    first = columns.index(letters[0])
    rest = [c for c in columns if c not in letters]
    return [*rest[:first], f"{letters[0]}–{letters[-1]}", *rest[first:]]
