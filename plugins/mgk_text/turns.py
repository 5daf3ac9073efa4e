"""What stands around a prompt and an answer: a tokenizer's chat turns, or nothing."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mgk_core.contract.errors import InputError

_USER, _MODEL = "MGKxUSERxTEXT", "MGKxMODELxTEXT"
_GEMMA = ("<start_of_turn>", "<end_of_turn>")


@frozen
class Turns:
    """Markup around the texts of one exchange, its special tokens written out.

    lead: what parts prompt and answer inside the answer's own tokens. stop: ends the answer.
    """

    before: str
    between: str
    stop: str
    lead: str
    chat: bool


def turns_of(tokenizer: Any, style: str) -> Turns:
    """Return the turns of a tokenizer. style: ``auto``, ``chat`` or ``plain``.

    ``auto`` is chat where the tokenizer brings a chat template. ``chat`` also takes Gemma's turns
    where the tokenizer has only their tokens; `InputError` where it has neither.
    """
    if style != "plain" and getattr(tokenizer, "chat_template", None):
        return _rendered(tokenizer)
    if style == "chat":
        return _gemma(tokenizer)
    if not tokenizer.eos_token:
        raise InputError(
            "the tokenizer has no end-of-sequence token; an answer's end cannot be learnt without one"
        )
    return Turns(before="", between="", stop=tokenizer.eos_token, lead=" ", chat=False)


def _rendered(tokenizer: Any) -> Turns:
    """Read the markup off the tokenizer's own template, by rendering it around two marks."""
    user = {"role": "user", "content": _USER}
    asked = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [user, {"role": "assistant", "content": _MODEL}], tokenize=False
    )
    if asked.count(_USER) != 1 or whole.count(_MODEL) != 1:
        raise InputError(
            "the tokenizer's chat template does not keep the texts as they are; set style = 'plain'"
        )
    before, between = asked.split(_USER)
    stop = whole.split(_MODEL)[1].strip() or tokenizer.eos_token
    return Turns(_without_bos(tokenizer, before), between, stop, lead="", chat=True)


def _gemma(tokenizer: Any) -> Turns:
    vocabulary = tokenizer.get_vocab()
    if not all(token in vocabulary for token in _GEMMA):
        raise InputError(
            "style = 'chat': the tokenizer has neither a chat template nor Gemma's turn tokens"
        )
    start, end = _GEMMA
    return Turns(f"{start}user\n", f"{end}\n{start}model\n", end, lead="", chat=True)


def _without_bos(tokenizer: Any, text: str) -> str:
    """Drop a leading BOS: `Encoder` puts it before every example, whatever the template does."""
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text
