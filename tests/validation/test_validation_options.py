"""Questions with options, scored by log-likelihood, once per row."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

import mgk
from mgk_core.contract.bundle import Choice, Probe
from mgk_core.contract.errors import InputError
from mgk_validation.options import option_metric

ITEMS = (
    Choice((1,), ((2,), (3, 4), (5,)), answer=0),
    Choice((0, 2), ((6, 1), (3,)), answer=1),
    Choice((4,), ((1,), (2,), (3,), (0, 0, 0)), answer=3),
)


def probe(metric: str, name: str = "", items: Any = ITEMS) -> Probe:
    """Make a probe of questions."""
    return Probe(
        name or metric, "mcq", metric, items, higher_is_better=True, chance=1 / 3
    )


def by_hand(bigrams: Any) -> list[list[float]]:
    """Return each option's mean log-likelihood per token."""
    found = []
    for item in ITEMS:
        paths = [(item.prompt[-1], *o) for o in item.options]
        found.append(
            [
                sum(float(bigrams.logprob(a, b)) for a, b in pairwise(p)) / (len(p) - 1)
                for p in paths
            ]
        )
    return found


def test_logprob_is_the_right_options_mean_per_token(bigrams: Any) -> None:
    """The value is the mean over items, each item's value stands beside it."""
    own = [
        scores[item.answer]
        for scores, item in zip(by_hand(bigrams), ITEMS, strict=True)
    ]
    score = option_metric(bigrams, probe("option_logprob"))
    assert score.per_item == pytest.approx(own, rel=1e-5)
    assert score.value == pytest.approx(sum(own) / 3, rel=1e-5)


def test_accuracy_counts_the_highest_score_per_token(bigrams: Any) -> None:
    """Right is who scores above all others; margin, chance and standard error are those of the same look."""
    tables = by_hand(bigrams)
    right = [
        float(max(range(len(t)), key=t.__getitem__) == i.answer)
        for t, i in zip(tables, ITEMS, strict=True)
    ]
    score = option_metric(bigrams, probe("option_accuracy"))
    assert score.per_item == tuple(right)
    assert score.value == score.extra["accuracy"] == pytest.approx(sum(right) / 3)
    mean = sum(right) / 3
    assert score.stderr == pytest.approx(
        math.sqrt(sum((r - mean) ** 2 for r in right) / 2 / 3)
    )
    margins = [
        t[i.answer] - max(s for k, s in enumerate(t) if k != i.answer)
        for t, i in zip(tables, ITEMS, strict=True)
    ]
    assert score.extra["margin"] == pytest.approx(sum(margins) / 3, rel=1e-5)
    assert score.extra["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)


def test_margin_is_the_right_score_minus_the_best_wrong_one(bigrams: Any) -> None:
    """A metric of its own, item by item, so that two rows can be compared on the same items."""
    margins = [
        t[i.answer] - max(s for k, s in enumerate(t) if k != i.answer)
        for t, i in zip(by_hand(bigrams), ITEMS, strict=True)
    ]
    score = option_metric(bigrams, probe("option_margin"))
    assert score.per_item == pytest.approx(margins, rel=1e-5)
    assert score.value == pytest.approx(sum(margins) / 3, rel=1e-5)


def test_a_tie_is_no_answer(bigrams: Any) -> None:
    """Where all options are the same, nothing is right: a model that knows nothing does not win."""
    with torch.no_grad():
        bigrams.model.weight.zero_()
    assert option_metric(bigrams, probe("option_accuracy")).value == 0


def test_length_normalisations_are_told_apart(bigrams: Any) -> None:
    """A long option loses by whole likelihood and wins per token: both accuracies are told."""
    with torch.no_grad():
        bigrams.model.weight.zero_()
        bigrams.model.weight[1, 2] = (
            3.0  # p(2 | 1) is high, and from then on 2 follows 2
        )
        bigrams.model.weight[2, 2] = 3.0
        bigrams.model.weight[1, 3] = 2.9
    item = Choice((1,), ((2, 2, 2), (3,)), answer=0, nbytes=(1, 9))
    extra = option_metric(bigrams, probe("option_accuracy", items=(item,))).extra
    assert (extra["accuracy"], extra["accuracy_whole"], extra["accuracy_per_byte"]) == (
        1.0,
        0.0,
        0.0,
    )


def test_the_model_is_asked_once_per_row(bigrams: Any) -> None:
    """Two metrics over the same items cost one scoring, and every row is scored anew."""
    for row in range(1, 4):
        option_metric(bigrams, probe("option_logprob"))
        option_metric(bigrams, probe("option_accuracy"))
        assert bigrams.asked == row


def test_other_weights_are_never_answered_from_memory(bigrams: Any) -> None:
    """Between the two metrics of a row a weight changes in place: the second asks again."""
    option_metric(bigrams, probe("option_logprob"))
    with torch.no_grad():
        bigrams.model.weight.mul_(2)
    score = option_metric(bigrams, probe("option_accuracy"))
    assert bigrams.asked == 2
    assert score.extra["logprob"] == pytest.approx(
        sum(t[i.answer] for t, i in zip(by_hand(bigrams), ITEMS, strict=True)) / 3,
        rel=1e-5,
    )


def test_an_adapter_switched_off_is_another_model(bigrams: Any) -> None:
    """The memory knows which adapters are on."""
    adapter = mgk.attach(bigrams.model, "lora", targets=[""], rank=2)
    option_metric(bigrams, probe("option_logprob"))
    with adapter.disabled():
        option_metric(bigrams, probe("option_accuracy"))
    assert bigrams.asked == 2


def test_other_items_are_scored_apart(bigrams: Any) -> None:
    """Two probes over different questions share nothing."""
    option_metric(bigrams, probe("option_logprob"))
    option_metric(bigrams, probe("option_accuracy", items=ITEMS[:2]))
    assert bigrams.asked == 2


@pytest.mark.parametrize(
    "item",
    [Choice((1,), ((2,),), 0), Choice((1,), ((2,), (3,)), 2), "a question"],
    ids=["one option", "no answer", "text"],
)
def test_items_that_are_no_questions_are_refused(bigrams: Any, item: Any) -> None:
    """The first bad item is named."""
    with pytest.raises(InputError, match="item 3"):
        option_metric(bigrams, probe("option_accuracy", items=(*ITEMS, item)))
