"""Chats as token ids: in the turns of a chat template, or as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from attrs import frozen

from mgk_core.contract.bundle import Tokens
from mgk_core.contract.conversation import Message, Options
from mgk_core.contract.errors import InputError
from mgk_hf.chat_template import render, tool_names
from mgk_hf.cutting import Cutter

_USER, _ANSWER = "MGKxUSERxTEXT", "MGKxANSWERxTEXT"
_OPENED = re.compile(r"<([A-Za-z_]+)>\s*$")
THINKING = ("think", "thinking", "thought")
"""Names of the blocks that models think in."""


@frozen
class Shape:
    """What a template puts around an answer, found by rendering it around marks.

    prompt ⋅ insert ⋅ lead ⋅ answer ⋅ end ⋅ rest; the finished exchange lacks the last ``dropped``
    characters of the prompt. insert: closes a block that the prompt opens and the finished
    exchange lacks. end: ends with the token that ends the turn. block: an opened block's name,
    where answers must close it themselves.
    """

    lead: str
    end: str
    rest: str
    dropped: int = 0
    insert: str = ""
    block: str = ""


def shape_of(cutter: Cutter, template: str, thinking: str) -> Shape:
    """Find a template's shape.

    :param thinking: ``auto``, ``off``, ``closed`` or ``keep``, as `mgk_hf.specs.HfSpec` has it
    :raises InputError: the answer would be taught where it is not served; lists the choices
    """
    user = {"role": "user", "content": _USER}
    prompt = render(cutter.tokenizer, template, [user], generate=True)
    answer = {"role": "assistant", "content": _ANSWER}
    whole = render(cutter.tokenizer, template, [user, answer])
    if prompt.count(_USER) != 1 or whole.count(_ANSWER) != 1:
        raise InputError(
            "the base's chat template does not keep the texts of messages; set style = 'plain'"
        )
    head, tail = whole.split(_ANSWER)
    token = cutter.first_token(tail)
    end, rest = (tail[: token.end()], tail[token.end() :]) if token else ("", tail)
    if not token and not cutter.tokenizer.eos_token:
        raise InputError(
            "the base's chat template ends an answer with no token, and the tokenizer has no"
            " end-of-sequence token; set style = 'plain'"
        )
    opened = _opened_block(prompt, tail, template)
    if head.startswith(prompt):
        lead = head[len(prompt) :]
        if not opened or f"</{opened}>" in lead:
            return Shape(lead, end, rest)
        return _opened(Shape(lead, end, rest), opened, thinking)
    dropped = len(prompt) - len(head)
    if not prompt.startswith(head) or (not opened and not _closed(prompt[len(head) :])):
        raise InputError(
            "the base's chat template renders a finished exchange differently from its prompt"
            f" ({prompt[-40:]!r} before the answer, then {head[-40:]!r}); set style = 'plain'"
        )
    shape = Shape("", end, rest, dropped)
    return _opened(shape, opened, thinking) if opened else shape


def _opened_block(prompt: str, tail: str, template: str) -> str:
    """Return the name of a thinking block that a prompt opens at its end; empty where it opens none.

    A tag that is closed after the answer holds the answer itself.
    """
    found = _OPENED.search(prompt)
    if found is None or f"</{found[1]}>" in tail:
        return ""
    name = found[1]
    return name if name in THINKING or f"</{name}>" in template else ""


def _opened(shape: Shape, block: str, thinking: str) -> Shape:
    """Return the shape for a prompt that opens a block which its finished exchange does not close."""
    if thinking == "closed":
        return Shape(
            shape.lead,
            shape.end,
            shape.rest,
            shape.dropped,
            insert=closing(block),
            block="",
        )
    if thinking == "keep":
        return Shape(shape.lead, shape.end, shape.rest, shape.dropped, block=block)
    raise InputError(
        f"the base's chat template opens <{block}> before every answer, so answers would be taught"
        " inside an open block. Set base.thinking: 'off' (the prompt closes the block; the saved"
        " template does so too), 'closed' (the model learns to close it at once) or 'keep' (your"
        f" answers hold the thinking and </{block}>)"
    )


def closing(block: str) -> str:
    """Return what closes an opened block, as the families that open one do."""
    return f"\n</{block}>\n\n"


def _closed(text: str) -> bool:
    """Whether text is a block that is opened and closed, or blank."""
    return not text.strip() or bool(re.fullmatch(r"\s*<([\w|]+)>\s*</\1>\s*", text))


@frozen
class Cut:
    """One assistant turn as text: its prompt, what precedes the answer, the answer, its end."""

    prompt: str
    before: str
    answer: str
    end: str

    @property
    def whole(self) -> str:
        """The prompt with everything that is learnt after it."""
        return self.prompt + self.before + self.answer + self.end


@frozen(eq=False, slots=False)
class ChatTurns:
    """Chats in the turns of one fixed template."""

    cutter: Cutter
    template: str
    thinking: str

    @cached_property
    def shape(self) -> Shape:
        """What the template puts around an answer."""
        return shape_of(self.cutter, self.template, self.thinking)

    @cached_property
    def end(self) -> int | None:
        """The token that ends a turn."""
        token = self.cutter.first_token(self.shape.end)
        if token is None:
            return None
        found: int = self.cutter.tokenizer.convert_tokens_to_ids(token[0])
        return found

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Return the ids of prompts."""
        texts = [self._prompt(self.cutter.masked(chat)) for chat in chats]
        return [tuple(ids) for ids in self.cutter.cut(texts)]

    def exchanges(self, chats: Sequence[Sequence[Message]]) -> list[list[Tokens]]:
        """Return training examples of each chat."""
        turns: list[list[Cut]] = []
        for number, messages in enumerate(chats, start=1):
            try:
                turns.append(self._turns(messages))
            except InputError as error:
                raise InputError(f"chat {number} of {len(chats)}: {error}") from error
        flat = [
            text for chat in turns for cut in chat for text in (cut.prompt, cut.whole)
        ]
        ids = iter(self.cutter.cut(flat))
        found = []
        for chat in turns:
            parts = [self._part(cut, next(ids), next(ids)) for cut in chat]
            found.append(_joined(parts) if _nested(chat, parts) else parts)
        return found

    def options(
        self, chats: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]
    ) -> list[Options]:
        """Return prompts with the answers to score; markup before an answer belongs to its prompt."""
        cuts: list[Cut] = []
        for chat, options in zip(chats, answers, strict=True):
            cuts += [self._option([*chat, _said(option)]) for option in options]
        heads = [c.prompt + (c.before if c.before.strip() else "") for c in cuts]
        wholes = [c.prompt + c.before + c.answer for c in cuts]
        pairs = iter(
            zip(
                self.cutter.cut(heads),
                self.cutter.cut(wholes),
                heads,
                wholes,
                strict=True,
            )
        )
        found = []
        for options in answers:
            made = [next(pairs) for _ in options]
            ids = tuple(tuple(self._after(*one)) for one in made)
            found.append(Options(tuple(made[0][0]), ids))
        return found

    def without_lead(self, ids: Sequence[int]) -> list[int]:
        """Return generated ids from where the answer itself begins."""
        lead = self.cutter.cut([self.shape.lead])[0] if self.shape.lead.strip() else []
        for start in range(len(ids) - len(lead), -1, -1):
            if lead and list(ids[start : start + len(lead)]) == lead:
                return list(ids[start + len(lead) :])
        return list(ids)

    def _option(self, chat: Sequence[Message]) -> Cut:
        """Cut an answer to score; where answers hold their own thinking, it is scored after none."""
        block = self.shape.block
        if not block:
            return self._turn(chat)
        masked = self.cutter.masked(chat)
        return Cut(
            self._prompt(masked[:-1]), closing(block), masked[-1]["content"], self._end
        )

    def _prompt(self, masked: Sequence[Message]) -> str:
        text = render(self.cutter.tokenizer, self.template, masked, generate=True)
        self._check_kept(masked, text)
        return text

    def _check_kept(self, masked: Sequence[Message], text: str) -> None:
        """Refuse a template that leaves a message or a tool out."""
        for message in masked:
            if any(name not in text for name in tool_names(message)):
                raise InputError(
                    "the base's chat template does not write out tools; leave them out of the"
                    " data, or take a base that is made for them"
                )
            # A tool's answer may be written as JSON, an earlier answer without its thinking.
            given = message["role"] in ("system", "user")
            if given and message["content"].strip() not in text:
                remedy = (
                    "base.fold_system = true"
                    if message["role"] == "system"
                    else "style = 'plain'"
                )
                raise InputError(
                    f"the base's chat template leaves the {message['role']} message out; set {remedy}"
                )

    def _turns(self, chat: Sequence[Message]) -> list[Cut]:
        places = [i for i, m in enumerate(chat) if m["role"] == "assistant"]
        if not places:
            raise InputError(
                "a chat needs a message with role 'assistant', which is what is learnt"
            )
        return [self._turn(chat[: i + 1]) for i in places]

    def _turn(self, chat: Sequence[Message]) -> Cut:
        """Cut the last turn of a chat out of its rendering."""
        shape, masked = self.shape, self.cutter.masked(chat)
        prompt = self._prompt(masked[:-1])
        if shape.block:
            return self._thought(prompt, masked[-1]["content"])
        whole = render(self.cutter.tokenizer, self.template, masked)
        kept = prompt[: len(prompt) - shape.dropped]
        tail = whole[len(kept) :]
        after = shape.end + shape.rest
        # Where answers hold their own thinking, it is in the place of an empty block.
        own = self.thinking == "keep" and not tail.startswith(shape.lead)
        lead = "" if own else shape.lead
        if not (
            whole.startswith(kept) and tail.startswith(lead) and tail.endswith(after)
        ):
            raise InputError(self._differs(whole, masked[-1]["content"]))
        answer = tail[len(lead) : len(tail) - len(after)]
        return Cut(prompt, shape.insert + lead, answer, self._end)

    def _differs(self, whole: str, answer: str) -> str:
        """Return why an exchange cannot be learnt, and what to do."""
        if any(f"</{block}>" in answer for block in THINKING):
            remedy = "the answer holds its own thinking: set base.thinking = 'keep'"
        else:
            remedy = "set style = 'plain'"
        return (
            "the base's chat template renders this exchange differently from its prompt and answer"
            f" ({self.cutter.unmasked(whole)[-60:]!r}); {remedy}"
        )

    def _thought(self, prompt: str, answer: str) -> Cut:
        """Take an answer as it is, into a block that the prompt opens and the answer closes."""
        block = self.shape.block
        if f"</{block}>" not in answer:
            raise InputError(
                f"base.thinking = 'keep': the prompt opens <{block}>, and an answer does not close"
                f" it with </{block}>: {answer[:60]!r}"
            )
        bare = answer.lstrip().removeprefix(f"<{block}>").lstrip()
        return Cut(prompt, "", bare, self._end)

    @property
    def _end(self) -> str:
        return self.shape.end or str(self.cutter.tokenizer.eos_token)

    def _part(self, cut: Cut, prompt: list[int], whole: list[int]) -> Tokens:
        learnt = self._after(prompt, whole, cut.prompt, cut.whole)
        text = self.cutter.unmasked(cut.answer)
        labels = (*(-100 for _ in prompt), *learnt)
        return Tokens((*prompt, *learnt), labels, len(text.encode()))

    def _after(
        self, head: list[int], whole: list[int], first: str, both: str
    ) -> list[int]:
        """Return the ids that follow a prompt's.

        Where a token would reach over the border, what follows is cut apart: a served prompt ends
        at the border too.
        """
        if whole[: len(head)] == head:
            return whole[len(head) :]
        return self.cutter.cut([both[len(first) :]])[0]


def _said(answer: str) -> Message:
    return {"role": "assistant", "content": answer}


def _nested(chat: Sequence[Cut], parts: Sequence[Tokens]) -> bool:
    """Whether each turn's text and ids are the beginning of the next one's."""
    for i in range(len(chat) - 1):
        if not chat[i + 1].prompt.startswith(chat[i].whole):
            return False
        if parts[i + 1].ids[: len(parts[i].ids)] != parts[i].ids:
            return False
    return True


def _joined(parts: Sequence[Tokens]) -> list[Tokens]:
    """Return turns that contain each other as one example in which all of them are learnt."""
    labels = list(parts[-1].labels)
    for part in parts[:-1]:
        for place, label in enumerate(part.labels):
            if label != -100:
                labels[place] = label
    return [Tokens(parts[-1].ids, tuple(labels), sum(p.nbytes for p in parts))]


@frozen(eq=False)
class PlainTurns:
    """Chats as plain text: messages one a line, a blank before an answer, EOS after it."""

    cutter: Cutter
    begin: tuple[int, ...]

    @property
    def _eos(self) -> tuple[int, ...]:
        eos = self.cutter.tokenizer.eos_token_id
        if eos is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token; an answer's end cannot be learnt without one"
            )
        return (eos,)

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Return the ids of prompts."""
        if any(tool_names(m) for chat in chats for m in chat):
            raise InputError(
                "style = 'plain' cannot write out tools; set style = 'chat'"
            )
        texts = ["\n".join(m["content"] for m in chat) for chat in chats]
        return [(*self.begin, *ids) for ids in self.cutter.plain(texts)]

    def exchanges(self, chats: Sequence[Sequence[Message]]) -> list[list[Tokens]]:
        """Return one example for each assistant turn: prompt and answer are cut apart."""
        turns: list[Sequence[Message]] = []
        counts = []
        for chat in chats:
            places = [i for i, m in enumerate(chat) if m["role"] == "assistant"]
            turns += [chat[: i + 1] for i in places]
            counts.append(len(places))
        prompts = self.prompts([turn[:-1] for turn in turns])
        texts = [turn[-1]["content"] for turn in turns]
        answers = self.cutter.plain([f" {text}" for text in texts])
        made = []
        for prompt, answer, text in zip(prompts, answers, texts, strict=True):
            learnt = (*answer, *self._eos)
            labels = (*(-100 for _ in prompt), *learnt)
            made.append(Tokens((*prompt, *learnt), labels, len(text.encode())))
        found = iter(made)
        return [[next(found) for _ in range(count)] for count in counts]

    def options(
        self, chats: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]
    ) -> list[Options]:
        """Return prompts with the answers to score."""
        flat = iter(
            self.cutter.plain([f" {a}" for several in answers for a in several])
        )
        return [
            Options(prompt, tuple(tuple(next(flat)) for _ in several))
            for prompt, several in zip(self.prompts(chats), answers, strict=True)
        ]


Turns = ChatTurns | PlainTurns


def begin_of(tokenizer: Any) -> tuple[int, ...]:
    """Return what a tokenizer puts before a text of its own accord."""
    whole = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start])
    return ()
