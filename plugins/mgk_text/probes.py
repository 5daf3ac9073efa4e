"""Probes made from held-out records."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from attrs import evolve

from mgk_core.contract.bundle import Pictured, Probe, Tokens
from mgk_core.contract.errors import InputError
from mgk_text import generation, similarity
from mgk_text.encode import Encoder
from mgk_text.items import ChoiceSet
from mgk_text.lengths import split as split_long
from mgk_text.records import Entry, Question
from mgk_text.specs import CALIBRATION, PromptedSpec
from mgk_text.templates import DictionaryTemplate, McqTemplate

T = TypeVar("T")


def perplexity(
    encoder: Encoder, texts: Sequence[str], name: str, *, split: str, limit: int
) -> Probe:
    """Return the perplexity of texts; longer ones are scored in pieces of ``limit`` tokens."""
    # An end is learnt in training alone: a base that never saw one would be scored on it.
    parts: list[Tokens] = []
    for text in evolve(encoder, ends=False).plain(texts):
        parts += (
            split_long(text, limit, encoder.head) if len(text.ids) > limit else [text]
        )
    # One token alone has nothing to be predicted from.
    items = tuple(part for part in parts if len(part.ids) > 1)
    return Probe(
        name=_name(name, split),
        phase="",
        metric="perplexity",
        items=items,
        higher_is_better=False,
        split=split,
        digest=_digest([e.ids for e in items]),
    )


def learnt_perplexity(examples: Sequence[Tokens], name: str, split: str) -> Probe:
    """Return the perplexity of what is learnt in examples: of answers, not of prompts."""
    items = tuple(e for e in examples if any(label != -100 for label in e.labels))
    return Probe(
        name=_name(name, split),
        phase="",
        metric="perplexity",
        items=items,
        higher_is_better=False,
        split=split,
        digest=_digest([[e.ids, e.labels, *_seen(e)] for e in items]),
    )


def options(
    asked: ChoiceSet, name: str, split: str, metrics: Sequence[str] = ()
) -> list[Probe]:
    """Return three probes of one set: the right option's log-likelihood, its margin, the accuracy.

    metrics: those of a spec; ``option_calibration`` is a fourth.
    """
    shared: dict[str, Any] = {
        "phase": "",
        "items": asked.items,
        "higher_is_better": True,
        "split": split,
        "digest": asked.digest,
    }
    accuracy = _name(f"{name}-accuracy", split)
    made = [
        Probe(name=_name(name, split), metric="option_logprob", **shared),
        Probe(name=_name(f"{name}-margin", split), metric="option_margin", **shared),
        Probe(name=accuracy, metric="option_accuracy", chance=asked.chance, **shared),
    ]
    if CALIBRATION in metrics:
        shared["higher_is_better"] = False
        calibration = _name(f"{name}-calibration", split)
        made.append(Probe(name=calibration, metric=CALIBRATION, **shared))
    return made


def pairs(asked: ChoiceSet, name: str, split: str) -> list[Probe]:
    """Return three probes of pairs: how often the chosen answer is likelier, its margin, its likelihood."""
    shared: dict[str, Any] = {
        "phase": "",
        "items": asked.items,
        "higher_is_better": True,
        "split": split,
        "digest": asked.digest,
    }
    logprob = _name(f"{name}-logprob", split)
    return [
        Probe(name=_name(name, split), metric="preference", chance=0.5, **shared),
        Probe(name=_name(f"{name}-margin", split), metric="option_margin", **shared),
        Probe(name=logprob, metric="option_logprob", **shared),
    ]


def labelled(asked: ChoiceSet, name: str, split: str) -> Probe:
    """Return the probe of single answers: how often a good one is likelier than a bad one."""
    return Probe(
        name=_name(name, split),
        phase="",
        metric="preference",
        items=asked.items,
        higher_is_better=True,
        chance=0.5,
        split=split,
        digest=asked.digest,
    )


def terms(
    encoder: Encoder,
    template: DictionaryTemplate,
    entries: Sequence[Entry],
    spec: PromptedSpec,
) -> list[Probe]:
    """Return generated terms."""
    prompts = encoder.prompts([template.ask(e) for e in entries])
    judges = [generation.term_judge(template, e) for e in entries]
    wanted = [template.answer(e) for e in entries]
    return generated(encoder, prompts, judges, wanted, spec, read=template.read)


def answers(
    encoder: Encoder,
    template: McqTemplate,
    questions: Sequence[Question],
    spec: PromptedSpec,
) -> list[Probe]:
    """Return generated answers to questions."""
    prompts = encoder.prompts([template.ask(q) for q in questions])
    judges = [generation.choice_judge(template, q) for q in questions]
    chance = math.fsum(1 / len(q.options) for q in questions) / len(questions)
    wanted = [template.answer(q) for q in questions]
    return generated(encoder, prompts, judges, wanted, spec, chance=chance)


def spread(records: Sequence[T], count: int) -> list[T]:
    """Return ``count`` records, evenly spread: the same ones in every run."""
    count = min(count, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def generated(
    encoder: Encoder,
    prompts: Sequence[Any],
    judges: Sequence[Any],
    wanted: Sequence[str],
    spec: PromptedSpec,
    *,
    read: Callable[[str], str] = str.strip,
    chance: float | None = None,
) -> list[Probe]:
    """Return answers that the model generates: judged one by one, and by each metric of the spec."""
    asked = [p if isinstance(p, Pictured) else tuple(p) for p in prompts]
    items = tuple(
        generation.Asked(p, judge, encoder, spec.new_tokens, answer, read)
        for p, judge, answer in zip(asked, judges, wanted, strict=True)
    )
    content = [[(*i.ids, *_seen(i.prompt)) for i in items], encoder.conversation.stops]
    first = Probe(
        name=f"{spec.probe_name}-generated",
        phase="",
        metric=generation.METRIC,
        items=items,
        higher_is_better=True,
        chance=chance,
        split="test",
        digest=_digest(content),
        when="ends",
    )
    made = [first]
    for metric in spec.metrics:
        if metric in similarity.NAMES:
            similarity.require(metric)
            name = f"{spec.probe_name}-{metric.replace('_', '-')}"
            digest = _digest([*content, wanted])
            made.append(
                evolve(first, name=name, metric=metric, chance=None, digest=digest)
            )
    return made


def _seen(example: Any) -> list[str]:
    """Return the digests of the pictures that an example or a prompt shows."""
    pictures = example.pictures if isinstance(example, Pictured) else ()
    return [picture.digest for picture in pictures]


def _name(name: str, split: str) -> str:
    if not name:
        raise InputError(
            "expected a name for each source of base_probes and base_questions"
        )
    return name if split == "test" else f"{name}-{split}"


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=32).hexdigest()
