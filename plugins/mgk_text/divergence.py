"""Metric ``kl_to_base``: how far the model's predictions are from those of the untouched base.

KL(base ‖ model) = Σ_v p_base(v) · (ln p_base(v) − ln p_model(v)), in nats per token, at up to `POSITIONS`
learnt positions of each item, spread evenly. The base's predictions are taken when the data are
loaded: the model is the untouched base then, in a resumed run too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from mgk_core.contract.bundle import LanguageBundle, Probe, Score, Tokens
from mgk_text.cache import IGNORED

POSITIONS = 8
"""Of each item; one is a row of fp32 over the vocabulary, 1 MB for Gemma's."""


@frozen(eq=False)
class Measured:
    """One item: an example, the positions that predict, the base's log-probabilities there.

    base: (positions, vocabulary) fp32 on the CPU.
    """

    example: Tokens
    positions: tuple[int, ...]
    base: Tensor = field(repr=False)


def probe(bundle: LanguageBundle, examples: Sequence[Tokens], name: str) -> Probe:
    """Return the probe of examples, with the predictions that the bundle makes now."""
    items = list[Measured]()
    for example in examples:
        if positions := _spread(example):
            base = _predictions(bundle, example, positions).cpu()
            items.append(Measured(example, positions, base))
    content = [[item.example.ids, item.positions] for item in items]
    digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=32).hexdigest()
    return Probe(
        name=name,
        phase="base",
        metric="kl_to_base",
        items=tuple(items),
        higher_is_better=False,
        floor=0.0,
        digest=digest,
    )


def divergence(bundle: LanguageBundle, probe: Probe) -> Score:
    """Return the mean of the items' mean divergence per position."""
    values = tuple(_of(bundle, item) for item in probe.items)
    n, mean = len(values), math.fsum(values) / len(values)
    spread = math.fsum((v - mean) ** 2 for v in values)
    return Score(
        probe=probe.name,
        metric=probe.metric,
        value=mean,
        n=n,
        stderr=math.sqrt(spread / (n - 1) / n) if n > 1 else math.nan,
        higher_is_better=False,
        per_item=values,
        extra={"share_kept": math.exp(-mean)},
    )


def _of(bundle: LanguageBundle, item: Measured) -> float:
    """Return KL(base ‖ model) of an item, the mean over its positions."""
    now = _predictions(bundle, item.example, item.positions)
    base = item.base.to(now.device)
    return float((base.exp() * (base - now)).sum(-1).mean())


@torch.no_grad()
def _predictions(
    bundle: LanguageBundle, example: Tokens, positions: Sequence[int]
) -> Tensor:
    """Return log-probabilities, (positions, vocabulary) fp32."""
    training = bundle.model.training
    bundle.model.eval()
    try:
        batch = bundle.pack([example])
        places = torch.tensor(positions, device=bundle.device)
        return torch.log_softmax(bundle.outputs(batch, places).float(), -1)
    finally:
        bundle.model.train(training)


def _spread(example: Tokens) -> tuple[int, ...]:
    """Return the positions before learnt tokens, at most `POSITIONS` of them."""
    where = [
        i - 1 for i, label in enumerate(example.labels) if label != IGNORED and i > 0
    ]
    count = min(POSITIONS, len(where))
    return tuple(where[i * len(where) // count] for i in range(count))
