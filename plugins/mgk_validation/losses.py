"""Metrics computed from the bundle's loss: squared error and perplexity.

An item is a batch of the bundle's own kind, or a `Tokens` example. Every item has a value of its
own, which gives the probe a standard error and paired tests. Batches are computed one by one,
unless the bundle computes many at once; the sums stay on the device until all are done. Examples
whose labels run from one place to the end are continuations, which a bundle scores many at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from mgk_core.contract.bundle import (
    Bundle,
    Choice,
    LanguageBundle,
    LossPerItem,
    Probe,
    Score,
    Tokens,
)
from mgk_core.contract.errors import InputError
from mgk_core.contract.progress import track

IGNORED = -100


@frozen
class ItemLosses:
    """Each item's summed loss and count (examples, or tokens)."""

    sums: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Σ sums / Σ counts."""
        return math.fsum(self.sums) / math.fsum(self.counts)

    @property
    def stderr(self) -> float:
        """Standard error of `mean` as a ratio of two means over items (delta method).

        √(n / (n − 1) · Σ (sᵢ − R cᵢ)²) / Σ cᵢ; for equal counts the ordinary one. NaN for n = 1.
        """
        n, ratio = len(self.sums), self.mean
        if n < 2:
            return math.nan
        squares = math.fsum(
            (s - ratio * c) ** 2 for s, c in zip(self.sums, self.counts, strict=True)
        )
        return math.sqrt(n / (n - 1) * squares) / math.fsum(self.counts)

    @property
    def per_item(self) -> tuple[float, ...]:
        """Each item's own mean."""
        return tuple(s / c for s, c in zip(self.sums, self.counts, strict=True))


def squared_error(bundle: Bundle, probe: Probe) -> Score:
    """Mean of the bundle's loss per example, in the loss's own unit."""
    losses = measure(bundle, probe)
    return score(probe, losses.mean, losses.stderr, losses.per_item)


def perplexity(bundle: Bundle, probe: Probe) -> Score:
    """exp(total NLL / total tokens); the items' values are their NLL per token, in nats."""
    losses = measure(bundle, probe)
    value = (
        math.exp(min(losses.mean, 700.0)) if math.isfinite(losses.mean) else math.nan
    )
    extra = {
        "nll": losses.mean,
        "nll_stderr": losses.stderr,
        "tokens": math.fsum(losses.counts),
    }
    if nbytes := sum(item.nbytes for item in probe.items if isinstance(item, Tokens)):
        extra["nll_per_byte"] = math.fsum(losses.sums) / nbytes
    return score(probe, value, value * losses.stderr, losses.per_item, extra)


def score(
    probe: Probe,
    value: float,
    stderr: float,
    per_item: tuple[float, ...],
    extra: Mapping[str, float] | None = None,
) -> Score:
    """Make a probe's score."""
    return Score(
        probe=probe.name,
        metric=probe.metric,
        value=value,
        n=len(per_item),
        stderr=stderr,
        higher_is_better=probe.higher_is_better,
        chance=probe.chance,
        per_item=per_item,
        extra=extra or {},
    )


@torch.no_grad()
def measure(bundle: Bundle, probe: Probe) -> ItemLosses:
    """Return every item's loss; `InputError` names an item without labels."""
    if isinstance(bundle, LossPerItem) and not any(
        isinstance(item, Tokens) for item in probe.items
    ):
        sums, counts = (
            tuple(column.double().tolist()) for column in bundle.losses(probe.items)
        )
    else:
        sums, counts = _together(bundle, probe.items) or _one_by_one(bundle, probe)
    if empty := [i for i, c in enumerate(counts) if c <= 0]:
        raise InputError(
            f"probe {probe.name!r}: nothing is scored in {len(empty)} of {len(counts)} items (first: item"
            f" {empty[0]}); each item needs at least one label that is not padding"
        )
    return ItemLosses(sums, counts)


Pairs = tuple[tuple[float, ...], tuple[float, ...]]


def _one_by_one(bundle: Bundle, probe: Probe) -> Pairs:
    pairs = [bundle.loss(_batch(bundle, probe, item)) for item in track(probe.items)]
    return _column([s for s, _ in pairs]), _column([c for _, c in pairs])


def _together(bundle: Bundle, items: Sequence[Any]) -> Pairs | None:
    """Score continuations in the bundle's own batches; None if items are of another kind."""
    if not isinstance(bundle, LanguageBundle):
        return None
    choices = [_continuation(item) for item in items]
    if any(c is None for c in choices):
        return None
    scores = bundle.score(choices)
    return tuple(-s.logprob[0] for s in scores), tuple(
        float(s.tokens[0]) for s in scores
    )


def _continuation(item: Any) -> Choice | None:
    """Return an example as a prompt and what follows it, or None if its labels have gaps."""
    if type(item) is not Tokens:  # pictures belong to a prompt as a whole
        return None
    learnt = [i for i, label in enumerate(item.labels) if label != IGNORED]
    if not learnt or learnt[0] == 0 or len(item.ids) - learnt[0] != len(learnt):
        return None
    start = learnt[0]
    return Choice(item.ids[:start], (item.ids[start:],), 0, (item.nbytes,))


def _column(tensors: Sequence[torch.Tensor]) -> tuple[float, ...]:
    """Read many 0-dim tensors in one transfer."""
    return tuple(torch.stack([t.reshape(()) for t in tensors]).double().tolist())


def _batch(bundle: Bundle, probe: Probe, item: Any) -> Any:
    if not isinstance(item, Tokens):
        return item
    if not isinstance(bundle, LanguageBundle):
        raise InputError(
            f"probe {probe.name!r} has tokens as items, and this base is not a language model"
        )
    return bundle.pack([item])
