"""What is learnt from dialogues and preferences, and which probes measure it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

from attrs import evolve, frozen

from mgk_core.contract.bundle import Choice, Probe, SeesPictures, Tokens
from mgk_core.contract.errors import InputError, Problem
from mgk_text import generation, lengths, probes
from mgk_text.cache import IGNORED, Chats, Learnt, TokenCache
from mgk_text.encode import Encoder
from mgk_text.items import of_choices
from mgk_text.records import (
    Dialogue,
    Message,
    PictureDialogue,
    Preference,
    Record,
)
from mgk_text.specs import ChatSpec, PreferenceSpec


def as_chat(messages: Sequence[Message], tools: str = "") -> list[Mapping[str, str]]:
    """Return messages as a conversation takes them: tools, as JSON, with the first one."""
    chat: list[dict[str, str]] = []
    for message in messages:
        turn = {"role": message.role, "content": message.content}
        if message.calls:
            turn["tool_calls"] = message.calls
        chat.append(turn)
    if tools and chat:
        chat[0]["tools"] = tools
    return cast("list[Mapping[str, str]]", chat)


@frozen
class DialogueTask:
    """Learn every turn of the assistant, and nothing else."""

    spec: ChatSpec
    length: int | None = None

    @property
    def overflow(self) -> str:
        """What happens to examples that are too long."""
        return self.spec.overflow

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return the training examples of each dialogue: one, or one for each answer."""
        dialogues = cast("Sequence[Dialogue]", records)
        chats: Chats = [as_chat(d.messages, d.tools) for d in dialogues]
        return cache.exchanges(encoder, chats, [d.place for d in dialogues])

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return the perplexity of the answers, and generated answers where short ones are asked."""
        dialogues = cast("Sequence[Dialogue]", records)
        spec = self.spec
        chats: Chats = [as_chat(d.messages, d.tools) for d in dialogues]
        whole = [e for made in encoder.conversation.exchanges(chats) for e in made]
        fitting = [lengths.truncated(e, spec.max_length) for e in whole]
        made = [probes.learnt_perplexity(fitting, spec.probe_name, split)]
        if split == "test" and spec.generate:
            made += self._generated(encoder, dialogues)
        return made

    def _generated(
        self, encoder: Encoder, dialogues: Sequence[Dialogue]
    ) -> list[Probe]:
        """Return generated answers to the prompts whose answer fits into ``new_tokens``.

        An answer of several sentences is never generated word for word, so it is not asked for.
        """
        spec = self.spec
        sizes = [len(e.ids) for e in encoder.plain([d.answer for d in dialogues])]
        short = [
            d
            for d, size in zip(dialogues, sizes, strict=True)
            if size <= spec.new_tokens
        ]
        if not short:
            return []
        asked = probes.spread(short, spec.generate)
        prompts = self._prompts(encoder, asked)
        judges = [generation.answer_judge(d.answer) for d in asked]
        wanted = [d.answer for d in asked]
        return probes.generated(encoder, prompts, judges, wanted, spec)

    def _prompts(self, encoder: Encoder, asked: Sequence[Dialogue]) -> Sequence[Any]:
        """Return the prompts of dialogues, up to where the last answer begins."""
        return encoder.conversation.prompts([as_chat(d.prompt, d.tools) for d in asked])

    def problems(self, records: Sequence[Record]) -> list[Problem]:
        """Return nothing: the reader has checked the turns."""
        return []


@frozen
class PictureTask(DialogueTask):
    """Learn every turn of the assistant in chats that show pictures."""

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return the training examples of each dialogue, with its pictures."""
        dialogues = cast("Sequence[PictureDialogue]", records)
        groups = self._bundle(encoder).see(
            [as_chat(d.messages, d.tools) for d in dialogues],
            [d.pictures for d in dialogues],
        )
        found = Learnt([], [])
        for dialogue, examples in zip(dialogues, groups, strict=True):
            found.examples.extend(examples)
            found.places.extend([dialogue.place] * len(examples))
        return found

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return the perplexity of the answers, and generated answers where short ones are asked."""
        spec = self.spec
        whole = self.learnt(encoder, records, TokenCache(on_disk=False)).examples
        fitting = [e for e in whole if len(e.ids) <= spec.max_length]
        made = [probes.learnt_perplexity(fitting, spec.probe_name, split)]
        if split == "test" and spec.generate:
            made += self._generated(encoder, cast("Sequence[Dialogue]", records))
        return made

    def _prompts(self, encoder: Encoder, asked: Sequence[Dialogue]) -> Sequence[Any]:
        dialogues = cast("Sequence[PictureDialogue]", asked)
        return self._bundle(encoder).see_prompts(
            [as_chat(d.prompt, d.tools) for d in dialogues],
            [d.pictures for d in dialogues],
        )

    def _bundle(self, encoder: Encoder) -> SeesPictures:
        bundle = encoder.bundle
        if not isinstance(bundle, SeesPictures):
            raise InputError("data type 'image-chat' needs a base that sees pictures")
        return bundle


@frozen
class PreferenceTask:
    """Prefer the chosen answer, or good answers to bad ones. A likelihood learns the chosen ones.

    Records are all pairs, or all single answers with a label (`alike`).
    """

    spec: PreferenceSpec
    length: int | None = None

    @property
    def overflow(self) -> str:
        """What happens to examples that are too long."""
        return self.spec.overflow

    def learnt(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return the chosen answers with their prompts; of a single answer, whichever it is."""
        pairs = cast("Sequence[Preference]", records)
        answers = [p.chosen or p.rejected for p in pairs]
        return self._answers(encoder, pairs, answers, cache)

    def rejected(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> list[Tokens]:
        """Return the rejected answers with their prompts, as `learnt` returns the chosen ones."""
        pairs = cast("Sequence[Preference]", records)
        made = self._answers(encoder, pairs, [p.rejected for p in pairs], cache)
        return [lengths.truncated(e, self.spec.max_length) for e in made.examples]

    def _answers(
        self,
        encoder: Encoder,
        pairs: Sequence[Preference],
        answers: Sequence[str],
        cache: TokenCache,
    ) -> Learnt:
        """Return one example for each answer, earlier answers in its prompt not learnt."""
        chats = [
            as_chat((*pair.prompt, Message("assistant", answer)))
            for pair, answer in zip(pairs, answers, strict=True)
        ]
        groups = cache.get(
            encoder, chats, lambda: encoder.conversation.exchanges(chats)
        )
        examples = [_last_answer(group[-1]) for group in groups]
        return Learnt(examples, [p.place for p in pairs])

    def every_answer(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Learnt:
        """Return every answer that the rows have as an example, chosen ones first in each row."""
        found = Learnt([], [])
        for pair in cast("Sequence[Preference]", records):
            answers = [answer for answer in (pair.chosen, pair.rejected) if answer]
            made = self._answers(encoder, [pair] * len(answers), answers, cache)
            found.examples.extend(made.examples)
            found.places.extend(made.places)
        return found

    def fitting(
        self, encoder: Encoder, records: Sequence[Record], cache: TokenCache
    ) -> Sequence[Record]:
        """Return the rows of which every answer fits into max_length, as ``overflow`` decides.

        :raises DataError: overflow is ``error`` and an answer is too long
        """
        limit = self.spec.max_length
        chosen = self.learnt(encoder, records, cache)
        pairs = cast("Sequence[Preference]", records)
        others = [p.rejected or p.chosen for p in pairs]
        rejected = self._answers(encoder, pairs, others, cache).examples
        kept = list[Record]()
        longer = list[Tokens]()
        for record, one, other in zip(records, chosen.examples, rejected, strict=True):
            longer.append(max(one, other, key=lambda e: len(e.ids)))
            cut = [lengths.truncated(e, limit) for e in (one, other)]
            truncates = self.spec.overflow == "truncate" and all(
                map(lengths.learnt_in, cut)
            )
            if truncates or len(longer[-1].ids) <= limit:
                kept.append(record)
        if self.spec.overflow == "error":
            lengths.fit(longer, limit, "error", what="train", places=chosen.places)
        return kept

    def probes(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        other: Sequence[Record],
        split: str,
    ) -> list[Probe]:
        """Return how often the chosen answer is the likelier one, and by how much.

        Of single answers: how often a good one is likelier than a bad one, and the good ones'
        perplexity.
        """
        pairs = cast("Sequence[Preference]", records)
        if not all(pair.paired for pair in pairs):
            return self._of_single(encoder, pairs, split)
        chats: Chats = [as_chat(p.prompt) for p in pairs]
        answers = [(p.chosen, p.rejected) for p in pairs]
        choices = []
        for made, pair in zip(
            encoder.conversation.options(chats, answers), pairs, strict=True
        ):
            sizes = (len(pair.chosen.encode()), len(pair.rejected.encode()))
            choices.append(Choice(made.prompt, made.answers, 0, sizes, pair.specialty))
        return probes.pairs(of_choices(choices), self.spec.probe_name, split)

    def _of_single(
        self, encoder: Encoder, records: Sequence[Preference], split: str
    ) -> list[Probe]:
        good = [record for record in records if record.chosen]
        bad = [record for record in records if not record.chosen]
        name = self.spec.probe_name
        made: list[Probe] = []
        if good and bad:
            # Alternately, so that a limit leaves some of both.
            mixed = [
                r for both in zip_longest(good, bad) for r in both if r is not None
            ]
            items = self._labelled(encoder, mixed)
            made.append(probes.labelled(of_choices(items), name, split))
        if good:
            chats = [as_chat((*r.prompt, Message("assistant", r.chosen))) for r in good]
            whole = [e[-1] for e in encoder.conversation.exchanges(chats)]
            limit = self.spec.max_length
            fitting = [lengths.truncated(_last_answer(e), limit) for e in whole]
            made.append(probes.learnt_perplexity(fitting, f"{name}-perplexity", split))
        return made

    def _labelled(
        self, encoder: Encoder, records: Sequence[Preference]
    ) -> list[Choice]:
        """Return answers as items of one option, which is right (0) or none is (−1)."""
        chats: Chats = [as_chat(r.prompt) for r in records]
        answers = [(r.chosen or r.rejected,) for r in records]
        options = encoder.conversation.options(chats, answers)
        found = []
        for made, record in zip(options, records, strict=True):
            sizes = (len((record.chosen or record.rejected).encode()),)
            right = 0 if record.chosen else -1
            item = Choice(made.prompt, made.answers, right, sizes, record.specialty)
            found.append(item)
        return found

    def problems(self, records: Sequence[Record]) -> list[Problem]:
        """Return nothing: the reader has checked the pairs."""
        return []


def alike(records: Sequence[Record], *, single: bool) -> tuple[Record, ...]:
    """Return preferences as they are, or each pair as two single answers."""
    if not single:
        return tuple(records)
    found: list[Record] = []
    for record in cast("Sequence[Preference]", records):
        if record.chosen:
            found.append(evolve(record, rejected=""))
        if record.rejected:
            found.append(evolve(record, chosen=""))
    return tuple(found)


def _last_answer(example: Tokens) -> Tokens:
    """Return an example of which only the last answer is learnt."""
    start = max(i for i, label in enumerate(example.labels) if label == IGNORED) + 1
    labels = (*(IGNORED,) * start, *example.labels[start:])
    return Tokens(example.ids, labels, example.nbytes)
