"""An Ollama Modelfile: the chat template of transformers rewritten as Ollama's.

Ollama's templates are Go's. What a chat template puts around messages is found by rendering chats
of marks, so any template is rewritten whose turns do not depend on what is in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mgk_core.contract.errors import InputError

MARKS = {
    "system": "\ue000S\ue000",
    "user": "\ue000U\ue000",
    "assistant": "\ue000A\ue000",
}
"""From Unicode's private area, so that no template has them."""


@frozen
class Turns:
    """What a chat template puts around messages.

    user_open: before a user's message. between: from there to an answer in the history. generate:
    from the last message to the answer. answer_end: after an answer. system_open, system_end: around a
    system message that is first; the user's turn after it needs no opening. None: it is refused.
    """

    user_open: str
    between: str
    generate: str
    answer_end: str
    system_open: str | None = None
    system_end: str = ""

    def template(self) -> str:
        """Return the turns as a Go template over Ollama's ``.Messages``."""
        opened = _go(self.user_open)
        system = ""
        if self.system_open is not None:
            opened = f'{{{{ if not (and (eq $i 1) (eq (index $.Messages 0).Role "system")) }}}}{opened}{{{{ end }}}}'
            system = (
                f'{{{{ if eq .Role "system" }}}}{_go(self.system_open)}'
                f"{{{{ .Content }}}}{_go(self.system_end)}{{{{ end }}}}"
            )
        end = _go(self.generate)
        if self.between != self.generate:
            end = (
                f"{{{{ if $last }}}}{end}{{{{ else }}}}{_go(self.between)}{{{{ end }}}}"
            )
        return (
            "{{ range $i, $_ := .Messages }}"
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            + system
            + f'{{{{ if eq .Role "user" }}}}{opened}{{{{ .Content }}}}{end}{{{{ end }}}}'
            + f'{{{{ if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go(self.answer_end)}{{{{ end }}}}'
            + "{{ end }}"
        )


def _go(text: str) -> str:
    """Return literal text as a Go template; what could be read as an action becomes a string of Go's."""
    if "{{" in text or "}}" in text or '"""' in text:
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
    return text


def turns_of(tokenizer: Any) -> Turns | None:
    """Take a chat template apart; None where the tokenizer has none.

    :raises InputError: its turns depend on what is in them
    """
    if not tokenizer.chat_template:
        return None
    history = _render(tokenizer, ("user", "assistant", "user"))
    if history is None:
        return None
    start, between, back, generate = _cut(history, ("user", "assistant", "user"))
    begin = str(tokenizer.bos_token or "")  # Ollama puts it there itself
    opened = start.removeprefix(begin)
    if not back.endswith(opened):
        raise InputError("the chat template opens a later turn differently")
    ended = back[: len(back) - len(opened)]
    found = Turns(opened, between, generate, ended)
    headed = _render(tokenizer, ("system", "user"))
    if headed is None or MARKS["system"] not in headed:
        return found
    before, middle, after = _cut(headed, ("system", "user"))
    if after != generate:
        raise InputError(
            "the chat template ends a turn differently after a system message"
        )
    return Turns(opened, between, generate, ended, before.removeprefix(begin), middle)


def _render(tokenizer: Any, roles: Sequence[str]) -> str | None:
    """Return a chat of marks as text; None where the template refuses it."""
    from jinja2 import TemplateError

    chat = [{"role": role, "content": MARKS[role]} for role in roles]
    try:
        text: str = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
    except TemplateError:
        return None
    return text


def _cut(text: str, roles: Sequence[str]) -> list[str]:
    """Return what is around the marks, in order."""
    parts = []
    for role in roles:
        part, mark, text = text.partition(MARKS[role])
        if not mark:
            raise InputError(f"the chat template leaves the {role} message out")
        parts.append(part)
    return [*parts, text]


def modelfile(weights: Path, tokenizer: Any, stops: Sequence[int]) -> tuple[str, str]:
    """Return an Ollama Modelfile, and a note where it has no template."""
    note, lines = "", [f"FROM ./{weights.name}"]
    try:
        turns = turns_of(tokenizer)
    except InputError as error:
        turns, note = None, f"Modelfile: no TEMPLATE, since {error}"
    if turns is not None:
        lines.append(f'TEMPLATE """{turns.template()}"""')
    ends = [*stops, tokenizer.eos_token_id]
    for end in dict.fromkeys(e for e in ends if e is not None):
        text = json.dumps(tokenizer.decode([end]), ensure_ascii=False)
        lines.append(f"PARAMETER stop {text}")
    return "\n".join(lines) + "\n", note
