"""Chat templates: rendering one, and fixing what would differ from day to day or call to call.

A fixed template is the base's own between a prologue and an epilogue. It is saved with the model,
so any program that applies it renders what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from mgk_core.contract.conversation import Message
from mgk_core.contract.errors import InputError
from mgk_hf.time_limit import within

_DIRECTIVES = "aAbBcdeFHIjmMpSTuUVwWxXyYzZ"
_UNPADDED = ("%-d", "%-m", "%-H", "%-I", "%-M", "%-S", "%-j")
_SWITCH = "enable_thinking"

GEMMA = (
    "{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_KNOWN_TURNS = {
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    CHATML: ("<|im_start|>", "<|im_end|>"),
    LLAMA3: ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


@frozen
class Settings:
    """What a configuration decides about the markup; see `mgk_hf.specs.HfSpec`."""

    thinking: str = "auto"
    system: str = ""
    fold_system: bool = False

    @property
    def given(self) -> bool:
        """Whether any of them differs from its default."""
        return self != Settings()


def own_template(tokenizer: Any) -> str | None:
    """Return a tokenizer's chat template, None where it has none, or several and no default."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    return found or None


def set_template(tokenizer: Any, template: str) -> None:
    """Make ``template`` the one that the tokenizer applies by default, and saves."""
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = {**tokenizer.chat_template, "default": template}
    else:
        tokenizer.chat_template = template


def template_for(tokenizer: Any, *, bos: bool) -> str:
    """Return a template for a tokenizer without one: of the turn tokens it has, else a plain one.

    :param bos: whether the tokenizer puts BOS before a text, as the template then must
    """
    vocabulary = tokenizer.get_vocab()
    known = [
        t
        for t, tokens in _KNOWN_TURNS.items()
        if all(token in vocabulary for token in tokens)
    ]
    if not known and not tokenizer.eos_token:
        raise InputError(
            "style = 'chat': the tokenizer has no chat template, no turn tokens of a known"
            " family and no end-of-sequence token, so nothing could end an answer"
        )
    template = known[0] if known else PLAIN
    return "{{ bos_token }}" + template if bos else template


def has_switch(template: str) -> bool:
    """Whether a template has a switch for thinking."""
    return _SWITCH in template


def fixed(tokenizer: Any, template: str, settings: Settings) -> str:
    """Return a template with its date fixed to now and the settings written into it."""
    parts = [
        _fixed_date(tokenizer, template) if "strftime_now" in template else "",
        _thinking_off()
        if settings.thinking in ("auto", "off") and has_switch(template)
        else "",
        _with_system(settings.system) if settings.system else "",
        _FOLD if settings.fold_system else "",
    ]
    return "".join(f"{part}\n" for part in parts if part) + template


def continued(template: str, text: str) -> str:
    """Return a template whose generation prompt ends with ``text`` besides."""
    # A template's last line break is dropped where it ends the file, and only there.
    end = "{% if add_generation_prompt %}{{ " + _literal(text) + " }}{% endif %}"
    return template.removesuffix("\n") + end


_SECONDS = 5.0
_ENDED: set[str] = set()
"""Templates that have rendered something: only a new one is a program that may never end."""


def render(
    tokenizer: Any,
    template: str,
    messages: Sequence[Message],
    *,
    generate: bool = False,
) -> str:
    """Render messages. generate: with what comes before the next answer.

    :raises InputError: the template refuses these messages; its reason, and the setting that helps
    """
    try:
        if template in _ENDED:
            return _render(tokenizer, template, messages, generate=generate)
        text = within(
            _SECONDS, lambda: _render(tokenizer, template, messages, generate=generate)
        )
        _ENDED.add(template)
        return text
    except TimeoutError as error:
        raise InputError(
            f"the base's chat template was stopped: {error}; expected one that renders a few messages"
            " at once; set style = 'plain' to train without turns"
        ) from error
    except Exception as error:
        # Templates are programs of others: they raise what they like.
        hint = _hint(tokenizer, template, messages)
        raise InputError(
            f"the base's chat template refuses these messages ({_roles(messages)}): {error}{hint}"
        ) from error


def _render(
    tokenizer: Any,
    template: str,
    messages: Sequence[Message],
    *,
    generate: bool = False,
) -> str:
    chat, tools = _parsed(messages)
    text: str = tokenizer.apply_chat_template(
        chat,
        tools=tools,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=generate,
    )
    return text


def _parsed(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], Any]:
    """Return messages as templates take them, and the tools that the first one brings."""
    chat = [dict[str, Any](m) for m in messages]
    for turn in chat:
        if "tool_calls" in turn:
            turn["tool_calls"] = json.loads(turn["tool_calls"])
    tools = chat[0].pop("tools", None) if chat else None
    return chat, None if tools is None else json.loads(tools)


def tool_names(message: Message) -> list[str]:
    """Return the names of the tools that a message brings or calls."""
    found = []
    for key in ("tools", "tool_calls"):
        for tool in json.loads(message.get(key, "[]")):
            described = tool.get("function", tool)
            found.append(str(described.get("name", "")))
    return found


def _hint(tokenizer: Any, template: str, messages: Sequence[Message]) -> str:
    """Return which setting makes a template accept messages that it has refused."""

    def accepts(others: Sequence[Message]) -> bool:
        try:
            _render(tokenizer, template, others)
        except Exception:  # noqa: BLE001 - as in `render`
            return False
        return True

    given = messages[0]["role"] == "system"
    if (given and accepts(messages[1:])) or (not given and _ADDS_SYSTEM in template):
        return (
            "; it has no system role: set base.fold_system = true to put the system message"
            " before the first user message, or leave system messages out"
        )
    if not given and accepts([{"role": "system", "content": "system"}, *messages]):
        return "; it demands a system message: set base.system, or style = 'plain'"
    return "; set style = 'plain' to train without turns"


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(str(m.get("role")) for m in messages)


def _fixed_date(tokenizer: Any, template: str) -> str:
    """Return a macro that answers ``strftime_now`` with this moment, whatever the format."""
    known = [*_UNPADDED, *(f"%{d}" for d in _DIRECTIVES)]
    directives = [d for d in known if d in template] or known
    asked = "{{ strftime_now(" + _literal("\x1f".join(directives)) + ") }}"
    values = _render(tokenizer, asked, [{"role": "user", "content": ""}]).split("\x1f")
    table = dict(zip(directives, values, strict=True)) | {"%%": "%"}
    pairs = json.dumps(list(table.items()), ensure_ascii=False)
    return (
        "{%- macro strftime_now(format) -%}{%- set made = namespace(text=format) -%}"
        "{%- for directive, value in " + pairs + " -%}"
        "{%- set made.text = made.text | replace(directive, value) -%}{%- endfor -%}"
        "{{ made.text }}{%- endmacro %}"
    )


def today(tokenizer: Any, template: str) -> str:
    """Return the date that a template would print now, ISO 8601; empty where it prints none."""
    if "strftime_now" not in template:
        return ""
    asked = "{{ strftime_now('%Y-%m-%d') }}"
    return _render(tokenizer, asked, [{"role": "user", "content": ""}])


def _thinking_off() -> str:
    return (
        "{%- if "
        + _SWITCH
        + " is not defined %}{%- set "
        + _SWITCH
        + " = false %}{%- endif %}"
    )


def _with_system(text: str) -> str:
    message = '{"role": "system", "content": ' + _literal(text) + "}"
    return (
        _ADDS_SYSTEM + "{%- set messages = [" + message + "] + messages %}{%- endif %}"
    )


_ADDS_SYSTEM = '{%- if messages[0]["role"] != "system" %}'
_FOLD = (
    '{%- if messages[0]["role"] == "system" and messages | length > 1 %}'
    '{%- set messages = [{"role": messages[1]["role"], "content":'
    ' messages[0]["content"] + "\\n\\n" + messages[1]["content"]}] + messages[2:] %}{%- endif %}'
)


def _literal(text: str) -> str:
    """Return a text as a string of a template."""
    return json.dumps(text, ensure_ascii=False)
