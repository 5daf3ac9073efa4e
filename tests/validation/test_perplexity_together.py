"""Perplexity of many examples at once is that of each alone."""

import pytest

from mgk_core.contract.bundle import Probe, Tokens
from mgk_core.host.hooks import installed_hooks
from mgk_validation import losses


@pytest.fixture(scope="module")
def bundle():
    import torch

    hooks = installed_hooks()
    spec = hooks.spec("base", {"type": "hf", "id": "tiny-gemma"})
    return hooks.build_model(spec, torch.device("cpu"))


def probe(items):
    return Probe("p", "base", "perplexity", items, higher_is_better=False)


def examples(bundle, cut):
    texts = [
        "당뇨병은 인슐린이 모자라 생긴다.",
        "The heart pumps blood.",
        "폐렴의 원인균은 다양하다. 치료는 항생제이다.",
    ]
    ids = [tuple(bundle.tokenizer(t)["input_ids"]) for t in texts]
    return [Tokens(i, (-100,) * cut + i[cut:], nbytes=7) for i in ids]


@pytest.mark.parametrize("cut", [1, 3])
def test_scored_together_equals_scored_alone(bundle, cut):
    """Per item, packed continuations give the loss of each example alone, within fp32's rounding."""
    items = examples(bundle, cut)
    together = losses._together(bundle, items)
    alone = losses._one_by_one(bundle, probe(items))
    assert together[1] == alone[1]
    assert together[0] == pytest.approx(alone[0], rel=2e-5)


def test_examples_with_gaps_are_asked_one_by_one(bundle):
    """Labels that are not one stretch to the end cannot be a continuation."""
    first = examples(bundle, 1)[0]
    gap = Tokens(
        first.ids, (-100, -100, *first.ids[2:4], *([-100] * (len(first.ids) - 4)))
    )
    assert losses._together(bundle, [gap]) is None
    assert losses.perplexity(bundle, probe([gap, first])).n == 2
