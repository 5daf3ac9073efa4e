"""Metric ``generation``: answers that the model generates, judged one by one."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field, frozen
from torch import nn

from mgk_core.contract.bundle import Answer, LanguageBundle, Pictured, Probe, Score
from mgk_core.model.versions import version_of
from mgk_text import similarity
from mgk_text.encode import Encoder
from mgk_text.records import Entry, Question
from mgk_text.templates import DictionaryTemplate, McqTemplate

METRIC = "generation"
SHOWN = 20
"""Answers that are kept to be read; enough to see a change, few enough to read."""

Judged = Mapping[str, float]
"""Figures of one answer; ``value`` is the one that the probe's score is the mean of."""


@frozen(eq=False)
class Asked:
    """One item: a prompt, how its answer is judged, and the answer that is wanted.

    read: takes the answer out of what the model wrote.
    """

    prompt: tuple[int, ...] | Pictured
    judge: Callable[[str], Judged]
    encoder: Encoder = field(repr=False)
    new_tokens: int
    wanted: str = ""
    read: Callable[[str], str] = str.strip

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt's tokens."""
        return self.prompt.ids if isinstance(self.prompt, Pictured) else self.prompt


def evaluate(bundle: LanguageBundle, probe: Probe) -> Score:
    """Generate an answer to every item (greedily) and return the mean of their figures.

    extra: the mean of each further figure, or the figure over all. stderr: of the mean, over items.
    """
    items: Sequence[Asked] = probe.items
    texts = _KEPT.setdefault(bundle.model, Texts()).written(bundle, probe)
    if probe.metric == METRIC:
        return _judged(probe, texts)
    compare = similarity.comparison(probe.metric)
    answers = [item.read(text) for item, text in zip(items, texts, strict=True)]
    wanted = [item.wanted for item in items]
    values = tuple(map(compare, answers, wanted))
    extra = similarity.over_all(probe.metric, answers, wanted)
    return _score(probe, values, extra)


def _judged(probe: Probe, texts: Sequence[str]) -> Score:
    items: Sequence[Asked] = probe.items
    judged = [item.judge(text) for item, text in zip(items, texts, strict=True)]
    shown = tuple(
        Answer(item.encoder.decode(item.ids), text)
        for item, text in zip(items[:SHOWN], texts, strict=False)
    )
    values = tuple(j["value"] for j in judged)
    extra = {
        name: sum(j[name] for j in judged) / len(judged)
        for name in judged[0]
        if name != "value"
    }
    return evolve(_score(probe, values, extra), answers=shown)


@define(eq=False)
class Texts:
    """What the model wrote to each set of prompts, for the other metrics of the same row.

    It is used once per probe, and only while no weight and no adapter's switch has changed.
    """

    version: tuple[int, ...] = ()
    kept: dict[int, list[str]] = field(factory=dict)
    users: set[str] = field(factory=set)

    def written(self, bundle: LanguageBundle, probe: Probe) -> list[str]:
        """Return the answers to a probe's prompts."""
        items: Sequence[Asked] = probe.items
        version = version_of(bundle.model)
        if version != self.version or probe.name in self.users:
            self.version, self.kept, self.users = version, {}, set()
        self.users.add(probe.name)
        prompts = tuple(item.prompt for item in items)
        key = hash((prompts, items[0].new_tokens))
        if key not in self.kept:
            asked: Any = prompts
            written = bundle.generate(asked, max_new_tokens=items[0].new_tokens)
            self.kept[key] = [
                item.encoder.decode(ids)
                for item, ids in zip(items, written, strict=True)
            ]
        return self.kept[key]


_KEPT: weakref.WeakKeyDictionary[nn.Module, Texts] = weakref.WeakKeyDictionary()


def _score(
    probe: Probe, values: tuple[float, ...], extra: Mapping[str, float]
) -> Score:
    """Return a probe's score: the mean of its items' values."""
    mean = sum(values) / len(values)
    return Score(
        probe=probe.name,
        metric=probe.metric,
        value=mean,
        n=len(values),
        stderr=_stderr(values, mean),
        higher_is_better=True,
        chance=probe.chance,
        per_item=values,
        extra=extra,
    )


def term_judge(template: DictionaryTemplate, entry: Entry) -> Callable[[str], Judged]:
    """Judge a generated term: exact match, and F1 over characters."""
    wanted = template.answer(entry)

    def judge(text: str) -> Judged:
        said = template.read(text)
        return {
            "value": float(folded(said) == folded(wanted)),
            "f1": character_f1(said, wanted),
            "empty": float(not said),
        }

    return judge


def answer_judge(wanted: str) -> Callable[[str], Judged]:
    """Judge a generated answer by exact match, and F1 over characters; blanks and case aside."""

    def judge(text: str) -> Judged:
        found = text.strip()
        return {
            "value": float(folded(found) == folded(wanted)),
            "f1": character_f1(found, wanted),
            "empty": float(not found),
        }

    return judge


def choice_judge(template: McqTemplate, question: Question) -> Callable[[str], Judged]:
    """Judge a generated answer to a question, strictly (``value``) and leniently."""

    def judge(text: str) -> Judged:
        found = template.read(text, question)
        return {
            "value": float(found.strict == question.answer),
            "lenient": float(found.lenient == question.answer),
            "invalid": float(found.strict is None),
            "invalid_lenient": float(found.lenient is None),
            "formatted": float(found.formatted),
        }

    return judge


def character_f1(said: str, wanted: str) -> float:
    """F1 over characters without spaces: Korean words are not a unit to count.

    As KorQuAD scores answers (Lim, Kim & Lee 2019, arXiv 1909.07005).
    """
    a, b = Counter(folded(said)), Counter(folded(wanted))
    common = sum((a & b).values())
    return 2 * common / (a.total() + b.total()) if common else 0.0


def folded(text: str) -> str:
    """Ignore case and spaces."""
    return "".join(text.split()).casefold()


def _stderr(values: Sequence[float], mean: float) -> float:
    n = len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(n - 1, 1)
    return math.sqrt(variance / n)
