"""What a model predicts where labels are, and the noise on its embeddings that NEFTune trains with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mgk_hf.batch import PADDING, TokenBatch
from mgk_hf.head import Head


@frozen(eq=False)
class HeadPredictions:
    """Hidden states at N positions and the head that reads them.

    hidden: (N, D)   tokens: (N,) labels   example: (N,) number of the example in the batch
    """

    head: Head
    hidden: Tensor
    tokens: Tensor
    example: Tensor

    def logprobs(self) -> Tensor:
        """Return the log-likelihood of each label, (N,) fp32; no (N, V) tensor is made."""
        return -self.head.token_nll(self.hidden, self.tokens)

    def logits(self, part: slice) -> Tensor:
        """Return fp32 logits at some of the positions, (n, V)."""
        return self.head.logits(self.hidden[part])


@contextmanager
def noisy_embeddings(model: Any, batch: TokenBatch, alpha: float) -> Iterator[None]:
    """Add NEFTune's noise to the embeddings inside the block, while the model is training.

    U(−1, 1) · α / √(L · D) for an example of L tokens (Jain et al. 2023, arXiv 2310.05914).
    """
    if not alpha or not model.training:
        yield
        return
    size: Tensor = alpha / _lengths(batch).sqrt()  # (B, T)

    def add(module: Any, args: Any, output: Tensor) -> Tensor:
        del module, args
        bound = (size / output.shape[-1] ** 0.5)[:, :, None].to(output.dtype)
        noise: Tensor = torch.empty_like(output).uniform_(-1, 1) * bound
        return output + noise

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _lengths(batch: TokenBatch) -> Tensor:
    """Return the length of the example that each position belongs to, (B, T) float; 1 for padding."""
    segments = batch.segment_ids
    real = segments != PADDING
    counts = torch.bincount(segments[real])
    lengths = counts[segments.clamp(min=0)].float()
    filled: Tensor = lengths.masked_fill(~real, 1.0)
    return filled
