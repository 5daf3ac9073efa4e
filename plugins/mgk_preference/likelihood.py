"""The likelihood with label smoothing, weights of tokens, or noise on the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from attrs import define, frozen
from torch import Tensor
from torch.nn.functional import log_softmax

from mgk_core.contract.bundle import (
    Batch,
    HasWeights,
    LanguageBundle,
    Predictions,
    PredictsTokens,
    Tokens,
    require_unpacks,
)
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_preference.chunks import by_rows
from mgk_preference.pairs import IGNORED
from mgk_preference.specs import LikelihoodSpec


@frozen(eq=False)
class WeightedBatch:
    """A bundle's batch and the weight of each predicted token, (N,)."""

    tokens: Batch
    weights: Tensor


@define(eq=False)
class Likelihood(Objective):
    """−log p of each learned token, and what the options make of it."""

    ctx: PhaseContext
    spec: LikelihoodSpec

    @property
    def unit(self) -> str:
        """What is counted."""
        return "tokens"

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows; with weights where the data have some, or prompts are learned too."""
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        train = self.ctx.data.train
        made = train.batch(rows)
        if not isinstance(train, HasWeights):
            return self._with_prompts(made)
        weights: list[float] = []
        for row in rows:
            weights += train.weights[row]
        return WeightedBatch(made, torch.tensor(weights, device=self.ctx.device))

    def dev(self) -> Sequence[Batch]:
        """Return the dev batches."""
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        return [self._with_prompts(batch) for batch in self.ctx.data.dev]

    def loss(self, batch: Batch) -> ObjectiveLoss:
        """Return the weighted loss of each token, summed, and the sum of the weights."""
        weights = None
        if isinstance(batch, WeightedBatch):
            batch, weights = batch.tokens, batch.weights
        found = cast("PredictsTokens", self.ctx.bundle).predictions(
            batch, embedding_noise=self.spec.neftune_noise_alpha
        )
        nll, losses = self._losses(found)
        if weights is None:
            count = torch.full((), float(nll.numel()), device=nll.device)
            return ObjectiveLoss(losses.sum(), count, {"nll": nll.detach()})
        return ObjectiveLoss(
            (losses * weights).sum(), weights.sum(), {"nll": nll.detach()}
        )

    def _losses(self, found: Predictions) -> tuple[Tensor, Tensor]:
        """Return (−log p, loss) of each predicted token, (N,) each."""
        smoothing = self.spec.label_smoothing
        if smoothing:
            both = smoothed_nll(found, smoothing)
            return both[:, 0], both[:, 1]
        nll = -found.logprobs()
        if self.spec.loss_type == "dft":
            return nll, nll * (-nll).exp().detach()
        return nll, nll

    def _with_prompts(self, batch: Batch) -> Batch:
        """Make a batch whose prompts are learned too, with ``prompt_weight``."""
        if not self.spec.prompt_weight:
            return batch
        bundle = require_unpacks(self.ctx.bundle, "loss.prompt_weight")
        examples = cast("list[Tokens]", bundle.unpack(batch))
        weights: list[float] = []
        for example in examples:
            own = [label != IGNORED for label in example.labels[1:]]
            weights += [1.0 if learned else self.spec.prompt_weight for learned in own]
        whole = [Tokens(example.ids, example.ids) for example in examples]
        packed = cast("LanguageBundle", self.ctx.bundle).pack(whole)
        return WeightedBatch(packed, torch.tensor(weights, device=self.ctx.device))


def smoothed_nll(found: Predictions, smoothing: float) -> Tensor:
    """Return (−log p, smoothed loss) of each token, (N, 2).

    (1 − ε) · −log p(y) + ε · mean over the vocabulary of −log p (Szegedy et al. 2015, arXiv 1512.00567).
    """

    def part(rows: slice) -> Tensor:
        logprobs = log_softmax(found.logits(rows), -1)  # (n, V)
        nll = -logprobs.gather(1, found.tokens[rows, None]).squeeze(1)
        spread = -logprobs.mean(-1)
        return torch.stack([nll, (1 - smoothing) * nll + smoothing * spread], 1)

    return by_rows(part, len(found.tokens))
