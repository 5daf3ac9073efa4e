"""Chat logs, instructions and preferences: from the fields of a row to messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mgk_text.fields import BadRowError, Fields, place
from mgk_text.layouts import Columns
from mgk_text.records import Dialogue, Message, Messages, Preference
from mgk_text.table import Raw

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "customer": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "bard": "assistant", "claude": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
_GOOD = {
    "1": True,
    "true": True,
    "good": True,
    "yes": True,
    "chosen": True,
    "thumbs_up": True,
}
_BAD = {
    "0": False,
    "false": False,
    "bad": False,
    "no": False,
    "rejected": False,
    "-1": False,
}
_LABELS = {**_GOOD, **_BAD}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
"""How the data sets of Bai et al. (2022, arXiv 2204.05862) begin a turn of a transcript."""


def chat(fields: Fields, raw: Raw) -> Dialogue:
    """Return the dialogue of a row with a list of messages."""
    column = fields.columns.column("messages")
    messages = _messages(fields, fields.columns.value(raw, "messages"), column)
    messages = _with_system(messages, fields.maybe(raw, "system"))
    _check_turns(messages, column)
    if messages[-1].role != "assistant":
        last = max(i for i, m in enumerate(messages) if m.role == "assistant")
        messages = messages[: last + 1]  # nothing after the last answer can be learnt
    return Dialogue(
        messages,
        _tools(fields.columns, raw),
        fields.specialty(raw),
        fields.group(raw),
        place(raw),
    )


def instruction(fields: Fields, raw: Raw) -> Dialogue:
    """Return the dialogue of an instruction: one question, one answer."""
    asked = "\n\n".join(
        p for p in (fields.string(raw, "prompt"), fields.maybe(raw, "input")) if p
    )
    answer = Message("assistant", fields.string(raw, "completion"))
    messages = _with_system(
        (*_history(fields, raw), Message("user", asked), answer),
        fields.maybe(raw, "system"),
    )
    return Dialogue(messages, "", fields.specialty(raw), fields.group(raw), place(raw))


def _history(fields: Fields, raw: Raw) -> Messages:
    """Return the earlier turns of an instruction: pairs of question and answer."""
    found = list[Message]()
    for pair in fields.columns.value(raw, "history") or ():
        if not isinstance(pair, Sequence) or [type(x) for x in pair] != [str, str]:
            message = f"expected pairs of question and answer, got {pair!r:.40}"
            raise BadRowError(fields.columns.column("history"), message)
        question, answer = map(fields.clean, pair)
        found += [Message("user", question), Message("assistant", answer)]
    return tuple(found)


def preference(fields: Fields, raw: Raw) -> Preference:
    """Return a preference: two answers to one prompt, or one answer with a label."""
    columns = fields.columns
    chosen, rejected = columns.value(raw, "chosen"), columns.value(raw, "rejected")
    if chosen is None and rejected is None:
        return _labelled(fields, raw)
    good = _answer(fields, chosen, columns.column("chosen"))
    bad = _answer(fields, rejected, columns.column("rejected"))
    if good[-1:] == bad[-1:]:
        raise BadRowError(
            columns.column("rejected"), "is the same as the chosen answer"
        )
    prompt = (
        _asked(fields, raw) if columns.value(raw, "prompt") is not None else good[:-1]
    )
    if not prompt or good[:-1] != bad[:-1]:
        message = "missing; the two answers do not begin with the same messages either"
        raise BadRowError(columns.column("prompt"), message)
    return _preference(fields, raw, prompt, good[-1].content, bad[-1].content)


def _labelled(fields: Fields, raw: Raw) -> Preference:
    columns = fields.columns
    found = columns.value(raw, "completion")
    if found is None:
        raise fields.absent(raw, "completion")
    answer = _answer(fields, found, columns.column("completion"))[-1].content
    label = columns.value(raw, "label")
    good = _LABELS.get(str(label).strip().lower().removesuffix(".0"))
    if good is None:
        message = (
            f"expected true or false (or 1 and 0, good and bad), got {label!r:.40}"
        )
        raise BadRowError(columns.column("label"), message)
    prompt = _asked(fields, raw)
    return _preference(
        fields, raw, prompt, answer if good else "", "" if good else answer
    )


def _preference(
    fields: Fields, raw: Raw, prompt: Messages, chosen: str, rejected: str
) -> Preference:
    prompt = _with_system(prompt, fields.maybe(raw, "system"))
    specialty, group = fields.specialty(raw), fields.group(raw)
    return Preference(prompt, chosen, rejected, specialty, group, place(raw))


def _asked(fields: Fields, raw: Raw) -> Messages:
    """Return the prompt, which is a text or a list of messages."""
    value = fields.columns.value(raw, "prompt")
    if isinstance(value, str) or value is None:
        text = fields.string(raw, "prompt")
        return _transcript(fields, text) or (Message("user", text),)
    return _messages(fields, value, fields.columns.column("prompt"))


def _answer(fields: Fields, value: Any, column: str) -> Messages:
    """Return an answer as messages, the answer last; some data sets repeat the prompt in it."""
    if isinstance(value, str):
        text = fields.clean(value)
        if not text:
            raise BadRowError(column, "is empty; fill it, or remove the row")
        return _transcript(fields, text) or (Message("assistant", text),)
    if value is None:
        raise BadRowError(
            column, "missing; expected both a chosen and a rejected answer"
        )
    if isinstance(value, Mapping):  # one message by itself
        value = [value]
    messages = _messages(fields, value, column)
    if messages[-1].role != "assistant":
        raise BadRowError(
            column,
            f"expected the last message to be the answer, got {messages[-1].role}",
        )
    return messages


def _transcript(fields: Fields, text: str) -> Messages:
    """Return the turns of a text such as ``Human: … Assistant: …``; none where it is not one."""
    opening, *turns = _TURN.split(text.strip())
    if opening or "Human" not in turns:
        return ()
    pairs = zip(turns[::2], turns[1::2], strict=True)
    found = [Message(_ROLES[role.lower()], fields.clean(said)) for role, said in pairs]
    # A prompt ends with the beginning of the answer.
    return tuple(found if found[-1].content else found[:-1])


def _messages(fields: Fields, value: Any, column: str) -> Messages:
    if isinstance(value, str):
        try:  # a table cell with JSON in it
            value = json.loads(value)
        except ValueError:
            raise BadRowError(
                column, f"expected a list of messages, got {value!r:.40}"
            ) from None
    if not isinstance(value, Sequence) or not value:
        raise BadRowError(column, f"expected a list of messages, got {value!r:.40}")
    return tuple(
        _message(fields, item, f"{column}[{i}]") for i, item in enumerate(value)
    )


def _message(fields: Fields, item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRowError(where, f"expected role and content, got {item!r:.40}")
    given = item.get("role", item.get("from"))
    role = _ROLES.get(str(given).strip().lower())
    if role is None:
        raise BadRowError(
            where,
            f"expected the role system, user, assistant or tool, got {given!r:.40}",
        )
    content = item.get("content", item.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _parts(content, where)
    calls = (
        json.dumps(item["tool_calls"], ensure_ascii=False)
        if item.get("tool_calls")
        else ""
    )
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise BadRowError(where, f"expected text as content, got {content!r:.40}")
    text = fields.clean(content)
    if not text and not calls and role != "system":
        raise BadRowError(
            where, f"the {role} message is empty; fill it, or remove the row"
        )
    return Message(role, text, calls)


def _parts(parts: Sequence[Any], where: str) -> str:
    """Join content that is a list of text parts; images are for another type."""
    found = list[str]()
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            hint = ""
            if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
                hint = "; chats with pictures are data of type 'image-chat'"
            raise BadRowError(
                where, f"expected text parts only, got {part!r:.60}{hint}"
            )
        found.append(part["text"])
    return "\n".join(found)


def _with_system(messages: Messages, system: str) -> Messages:
    """Put a row's own system text first; an empty one is none."""
    kept = tuple(m for m in messages if m.content or m.role != "system")
    if system and not any(m.role == "system" for m in kept):
        return (Message("system", system), *kept)
    return kept


def _check_turns(messages: Messages, column: str) -> None:
    """Refuse what no template renders: a system message later on, no answer, two turns of one side."""
    roles = [m.role for m in messages if m.role != "tool"]
    if "system" in roles[1:]:
        raise BadRowError(
            column, "has a system message that is not the first; move it to the front"
        )
    turns = [r for r in roles if r != "system"]
    if "assistant" not in turns:
        raise BadRowError(
            column, "has no assistant message, so nothing can be learnt from it"
        )
    if turns[0] != "user":
        raise BadRowError(
            column, "begins with an answer; expected a user message first"
        )
    with_tools = any(m.role == "tool" for m in messages)
    for one, two in pairwise(turns):
        if one == two and not (with_tools and one == "assistant"):
            raise BadRowError(column, f"has two {one} messages in a row; join them")


def _tools(columns: Columns, raw: Raw) -> str:
    """Return a row's tools as the JSON text of a list of objects."""
    value = columns.value(raw, "tools")
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRowError(
                columns.column("tools"), f"expected JSON, got {value!r:.40}"
            ) from None
    if not isinstance(value, list) or not all(
        isinstance(tool, Mapping) for tool in value
    ):
        raise BadRowError(
            columns.column("tools"), f"expected a list of objects, got {value!r:.40}"
        )
    return json.dumps(value, ensure_ascii=False)
