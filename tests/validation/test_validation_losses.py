"""Squared error and perplexity: values, standard errors, items."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch

from mgk_core.contract.bundle import Probe, Tokens
from mgk_core.contract.errors import InputError
from mgk_core.host.hooks import Hooks
from mgk_validation.losses import ItemLosses, measure, perplexity

EXAMPLES = (
    Tokens((1, 2, 3), (-100, 2, 3), nbytes=6),
    Tokens((4, 5), (-100, 5), nbytes=2),
    Tokens((0, 1, 2, 6), (-100, -100, 2, 6)),
)


def probe(items: Any = EXAMPLES, metric: str = "perplexity") -> Probe:
    """Make a probe over tokens."""
    return Probe("korean", "base", metric, items, higher_is_better=False)


def test_perplexity_is_exp_of_total_nll_over_total_tokens(bigrams: Any) -> None:
    """By hand: the labelled tokens' log-likelihoods, summed over all items, divided once."""
    nll = [
        -float(bigrams.logprob(1, 2) + bigrams.logprob(2, 3)),
        -float(bigrams.logprob(4, 5)),
        -float(bigrams.logprob(1, 2) + bigrams.logprob(2, 6)),
    ]
    score = perplexity(bigrams, probe())
    assert score.value == pytest.approx(math.exp(sum(nll) / 5), rel=1e-6)
    assert score.per_item == pytest.approx([nll[0] / 2, nll[1], nll[2] / 2], rel=1e-6)
    assert score.extra["nll"] == pytest.approx(sum(nll) / 5, rel=1e-6)
    assert score.extra["nll_per_byte"] == pytest.approx(sum(nll) / 8, rel=1e-6)
    assert (score.n, score.extra["tokens"], score.higher_is_better) == (3, 5, False)


def test_perplexitys_standard_error_is_by_the_delta_method(bigrams: Any) -> None:
    """d exp(x) = exp(x) dx, with the ratio's own standard error for x."""
    score = perplexity(bigrams, probe())
    assert score.stderr == pytest.approx(score.value * score.extra["nll_stderr"])


def test_standard_error_of_a_ratio() -> None:
    """With equal counts it is s / √n; with unequal ones it agrees with resampling the items."""
    equal = ItemLosses((1.0, 2.0, 4.0, 9.0), (1.0, 1.0, 1.0, 1.0))
    assert equal.stderr == pytest.approx(statistics.stdev([1.0, 2.0, 4.0, 9.0]) / 2)
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 20, (400,), generator=generator).double()
    sums = counts * (2 + torch.randn(400, generator=generator, dtype=torch.float64))
    losses = ItemLosses(tuple(sums.tolist()), tuple(counts.tolist()))
    drawn = torch.randint(0, 400, (4000, 400), generator=generator)
    ratios = sums[drawn].sum(1) / counts[drawn].sum(1)
    # a standard deviation from 4,000 draws has a relative standard error of 1.1 %, the delta method some more
    assert losses.stderr == pytest.approx(float(ratios.std()), rel=0.06)


def test_one_item_has_no_standard_error() -> None:
    """It is not a number rather than zero."""
    assert math.isnan(ItemLosses((3.0,), (2.0,)).stderr)


def test_a_probe_without_labels_is_refused(bigrams: Any) -> None:
    """An item in which nothing is scored is named."""
    with pytest.raises(InputError, match="item 1"):
        measure(bigrams, probe((EXAMPLES[0], Tokens((1, 2), (-100, -100)))))


def test_tokens_need_a_language_model(hooks: Hooks, phase_of: Any) -> None:
    """The reference network cannot take tokens, and the message says why."""
    ctx = phase_of()
    bundle = hooks.build_model(ctx.config.base, torch.device("cpu"))
    with pytest.raises(InputError, match="not a language model"):
        measure(bundle, probe())


def test_squared_error_is_the_loss_per_example(hooks: Hooks, phase_of: Any) -> None:
    """Through the hook, on real data: the mean over examples of the error summed over outputs."""
    ctx = phase_of()
    ctx.bundle = hooks.build_model(ctx.config.base, torch.device("cpu"))
    test = next(
        p
        for p in hooks.load_data(ctx.phase.data, ctx.bundle).probes
        if p.split == "test"
    )
    score = hooks.evaluate(ctx, test)
    x, y = (
        torch.cat([getattr(i, k) for i in test.items]) for k in ("inputs", "targets")
    )
    with torch.no_grad():
        errors = ((ctx.bundle.model(x) - y) ** 2).sum(1)
    assert score.value == pytest.approx(float(errors.mean()), rel=1e-5)
    assert score.stderr == pytest.approx(float(errors.std()) / math.sqrt(256), rel=1e-5)
    assert score.per_item == pytest.approx(errors.tolist(), rel=1e-4)
    assert sum(score.per_item) / score.n == pytest.approx(score.value)


def test_a_loss_that_is_not_finite_stays_so(bigrams: Any) -> None:
    """NaN weights give NaN, never a number."""
    with torch.no_grad():
        bigrams.model.weight.fill_(math.nan)
    assert math.isnan(perplexity(bigrams, probe()).value)
