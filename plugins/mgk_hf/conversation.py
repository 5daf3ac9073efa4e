"""How a Hugging Face base is spoken to: the one place that knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from attrs import asdict, define, field, frozen

from mgk_core.contract.bundle import Tokens
from mgk_core.contract.conversation import Message, Options, Style
from mgk_core.contract.errors import InputError
from mgk_hf import chat_template
from mgk_hf.chat_template import Settings, has_switch
from mgk_hf.cutting import Cutter
from mgk_hf.turns import THINKING, ChatTurns, PlainTurns, Turns, begin_of, shape_of


@define(eq=False, slots=False)
class HfConversation:
    """The conversation of one base; see `mgk_core.contract.conversation.Conversation`.

    ends: the tokens that the base's generation configuration ends with. template: the chat
    template in use, None without one. native: whether the base brought it. fixed: whether date and
    settings are written into it, which happens when the first data are put into turns. date: what
    it then prints, ISO 8601, where it prints one.
    """

    tokenizer: Any = field(repr=False)
    settings: Settings = field(factory=Settings)
    ends: tuple[int, ...] = ()
    template: str | None = field(init=False, repr=False)
    native: bool = field(init=False)
    fixed: bool = field(init=False, default=False)
    date: str = field(init=False, default="")
    _kept: ChatTurns | None = field(init=False, default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        self.template = chat_template.own_template(self.tokenizer)
        self.native = self.template is not None
        if self.native and self.settings.given:
            self._fix()

    @cached_property
    def cutter(self) -> Cutter:
        """What cuts texts."""
        return Cutter(self.tokenizer)

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer; a large vocabulary takes a second."""
        return tokenizer_digest(self.tokenizer)

    @cached_property
    def begin(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text."""
        return begin_of(self.tokenizer)

    @property
    def chat(self) -> bool:
        """Whether messages are put into turns."""
        return self.template is not None

    @property
    def stops(self) -> tuple[int, ...]:
        """Every token that ends a turn: generation's, the template's, the tokenizer's."""
        ends = [*self.ends, self._turn_end(), self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(end for end in ends if end is not None))

    @property
    def digest(self) -> str:
        """Digest of everything that decides ids, for the default style."""
        return self._default().digest

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the markup."""
        return self._default().notes

    def styled(self, style: Style) -> View:
        """Return the conversation of one style; the first one in turns fixes the template."""
        if style == "plain" or (style == "auto" and not self.native):
            return self._plain()
        self._fix()
        turns = self._turns()
        shape = turns.shape  # refuses here what cannot be served as trained
        thinks = has_switch(turns.template) or any(
            f"<{b}>" in turns.template for b in THINKING
        )
        if self.settings.thinking in ("closed", "keep") and not (
            thinks or shape.lead.strip()
        ):
            raise InputError(
                f"base.thinking = {self.settings.thinking!r} has no effect: the base's chat template has"
                " no thinking block; leave it out"
            )
        return View(self, turns)

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Return prompts in turns where the base has them, else as plain text."""
        return self._default().prompts(chats)

    def exchanges(self, chats: Sequence[Sequence[Message]]) -> list[list[Tokens]]:
        """Return training examples, in turns where the base has them."""
        return self._default().exchanges(chats)

    def options(
        self, chats: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]
    ) -> list[Options]:
        """Return prompts with answers to score, in turns where the base has them."""
        return self._default().options(chats, answers)

    def documents(self, texts: Sequence[str], *, end: bool = False) -> list[Tokens]:
        """Return plain texts as training examples."""
        return self._plain().documents(texts, end=end)

    def read(self, ids: Sequence[int]) -> str:
        """Return generated ids as the answer."""
        return self._default().read(ids)

    def record(self) -> dict[str, Any]:
        """Return the markup as JSON."""
        return {
            "template": self.template,
            "native": self.native,
            "fixed": self.fixed,
            "settings": asdict(self.settings),
            "date": self.date,
            "stops": list(self.stops),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Use a recorded markup, unless the settings that made it have changed since.

        Only a fixed one adds anything to the base's own.
        """
        if not record["fixed"] or record["settings"] != asdict(self.settings):
            return
        self._use(record["template"])
        self.date = str(record["date"])
        self.native = bool(record["native"])

    def _fix(self) -> None:
        """Write date and settings into the template, and give a base without one its own."""
        if self.fixed:
            return
        tokenizer, settings = self.tokenizer, self.settings
        template = self.template or chat_template.template_for(
            tokenizer, bos=bool(self.begin)
        )
        self.date = chat_template.today(tokenizer, template)
        template = chat_template.fixed(tokenizer, template, settings)
        if settings.thinking == "off" and not chat_template.has_switch(template):
            template = chat_template.continued(template, self._thinking_end(template))
        self._use(template)

    def _thinking_end(self, template: str) -> str:
        """Return the markup that a prompt lacks before an answer without thinking."""
        shape = shape_of(self.cutter, template, "closed")
        missing = shape.insert + shape.lead
        if not missing.strip():
            raise InputError(
                "base.thinking = 'off': the base's chat template has no thinking block; leave it out"
            )
        return missing

    def _use(self, template: str) -> None:
        self.template, self.fixed = template, True
        chat_template.set_template(self.tokenizer, template)

    def _turn_end(self) -> int | None:
        """Return the token that ends a turn; None where the template cannot be used at all."""
        if self.template is None:
            return None
        try:
            return self._turns().end
        except InputError:
            return None

    def _default(self) -> View:
        return self._plain() if self.template is None else View(self, self._turns())

    def _plain(self) -> View:
        return View(self, PlainTurns(self.cutter, self.begin))

    def _turns(self) -> ChatTurns:
        assert self.template is not None  # noqa: S101 - the callers have looked
        if self._kept is None or self._kept.template != self.template:
            self._kept = ChatTurns(self.cutter, self.template, self.settings.thinking)
        return self._kept


@frozen(eq=False)
class View:
    """A conversation in one style."""

    whole: HfConversation
    turns: Turns

    @property
    def chat(self) -> bool:
        """Whether messages are put into turns."""
        return isinstance(self.turns, ChatTurns)

    @property
    def stops(self) -> tuple[int, ...]:
        """Every token that ends a turn."""
        return self.whole.stops

    @property
    def begin(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text."""
        return self.whole.begin

    @property
    def digest(self) -> str:
        """Digest of everything that decides ids."""
        template = self.turns.template if isinstance(self.turns, ChatTurns) else None
        parts = [self.whole.tokenizer_digest, template, self.whole.settings.thinking]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the markup."""
        if not isinstance(self.turns, ChatTurns):
            return ()
        found = []
        if not self.whole.native:
            found.append(
                "chat template: the base has none; its model is saved with one for its turns"
            )
        if date := self.whole.date:
            found.append(
                f"chat template: prints the date, fixed to {date} for this run and its model"
            )
        if self.whole.settings.thinking == "auto" and has_switch(self.turns.template):
            found.append(
                "chat template: thinking is off by default, here and in the saved model; see base.thinking"
            )
        shape = self.turns.shape
        if (before := shape.insert + shape.lead).strip():
            found.append(f"chat template: answers are learnt after {before.strip()!r}")
        return tuple(found)

    def styled(self, style: Style) -> View:
        """Return the conversation of one style."""
        return self.whole.styled(style)

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Return the ids after which the model answers."""
        return self.turns.prompts(chats)

    def exchanges(self, chats: Sequence[Sequence[Message]]) -> list[list[Tokens]]:
        """Return each chat as training examples."""
        return self.turns.exchanges(chats)

    def options(
        self, chats: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]
    ) -> list[Options]:
        """Return prompts with answers to score."""
        return self.turns.options(chats, answers)

    def documents(self, texts: Sequence[str], *, end: bool = False) -> list[Tokens]:
        """Return plain texts as training examples; only the first token is not learnt."""
        eos = self.whole.tokenizer.eos_token_id
        tail = (eos,) if end and eos is not None else ()
        made = []
        for text, body in zip(texts, self.whole.cutter.plain(texts), strict=True):
            ids = (*self.begin, *body, *tail)
            made.append(Tokens(ids, (-100, *ids[1:]), len(text.encode())))
        return made

    def read(self, ids: Sequence[int]) -> str:
        """Return generated ids as the answer, without markup before it."""
        tokenizer, turns = self.whole.tokenizer, self.turns
        if not isinstance(turns, ChatTurns):
            return str(tokenizer.decode(list(ids), skip_special_tokens=True))
        text = tokenizer.decode(turns.without_lead(ids), skip_special_tokens=True)
        for block in THINKING:
            if f"</{block}>" in turns.template:
                text = text.rpartition(f"</{block}>")[2]
        return str(text)

    def record(self) -> dict[str, Any]:
        """Return the markup as JSON."""
        return self.whole.record()

    def restore(self, record: Mapping[str, Any]) -> None:
        """Use a recorded markup."""
        self.whole.restore(record)


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of all that decides how a tokenizer cuts texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content: str = backend.to_str()
    else:
        content = json.dumps(
            [type(tokenizer).__qualname__, tokenizer.get_vocab()], sort_keys=True
        )
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    text = f"{content}\0{json.dumps(special, sort_keys=True)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
