"""Training the rows of new tokens, and nothing else of a base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from mgk_core.contract.errors import InputError
from mgk_core.model.inject import Part, put, take
from mgk_hf.batch import pack, pad, predictors
from mgk_hf.network import Network

_NAME = "new-rows"
_TOKENS = 512  # in one step


class RowsOfEmbedding(Part):
    """output + scale · R[id − start] for ids from ``start`` on."""

    def __init__(self, rows: nn.Parameter, start: int) -> None:
        super().__init__()
        self.rows, self.start = rows, start

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: ids (...)   output: (..., D)."""
        new = args[0] >= self.start
        found = F.embedding((args[0] - self.start).clamp(min=0), self.rows)
        scale = getattr(module, "embed_scale", None)
        found = found if scale is None else found * scale
        return torch.where(new[..., None], output + found.to(output.dtype), output)


class RowsOfHead(Part):
    """logits of tokens from ``start`` on: + h Rᵀ."""

    def __init__(self, rows: nn.Parameter, start: int) -> None:
        super().__init__()
        self.rows, self.start = rows, start

    def adjust(
        self, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        """args[0]: hidden states (..., D)   output: (..., V)."""
        more = F.linear(args[0].to(self.rows.dtype), self.rows).to(output.dtype)
        end = self.start + len(self.rows)
        return torch.cat(
            [
                output[..., : self.start],
                output[..., self.start : end] + more,
                output[..., end:],
            ],
            -1,
        )


def train_rows(
    network: Network,
    sequences: Sequence[Sequence[int]],
    *,
    start: int,
    count: int,
    steps: int,
    lr: float,
    seed: int,
) -> float:
    """Train the table's rows ``start`` to ``start + count`` on texts, and write them into it.

    Every other number of the model is bit-identical afterwards. AdamW without decay, ``lr`` falling
    linearly to 0; texts are drawn by ``seed``. Returns the mean loss of the last step, in nats.

    :param sequences: ids of each text, its beginning token included
    :raises InputError: no text holds a new token, so that nothing could be learnt
    """
    useful = [s for s in sequences if len(s) > 1 and max(s) >= start]
    if not useful:
        raise InputError(
            "base.new_tokens_steps: no text holds a new token; there is nothing to train the rows on"
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), _placed(network, start, count) as rows:
        optimizer = torch.optim.AdamW(rows, lr=lr, weight_decay=0.0)
        loss = torch.tensor(0.0)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            drawn = [(s, s) for s in _draw(useful, generator)]
            batch = (pack if network.packs else pad)(drawn).to(rows[0].device)
            where, labels = predictors(batch)
            loss = network.head.nll(network(batch)[where], labels) / labels.numel()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        _write(network, rows, start)
    return float(loss.detach())


def _draw(
    sequences: Sequence[Sequence[int]], generator: torch.Generator
) -> list[Sequence[int]]:
    """Return a fresh random draw of texts, about `_TOKENS` tokens in total; each is cut to that length."""
    drawn: list[Sequence[int]] = []
    room = _TOKENS
    for i in torch.randperm(len(sequences), generator=generator).tolist():
        piece = sequences[i][:room]
        if len(piece) > 1:
            drawn.append(piece)
        room -= len(piece)
        if room <= 1:
            break
    return drawn


@contextmanager
def _placed(network: Network, start: int, count: int) -> Iterator[list[nn.Parameter]]:
    """Put new rows, zero at first, on both ends inside the block: one parameter where they are tied."""
    embedding, head = _ends(network)
    width, device = embedding.weight.shape[1], embedding.weight.device
    rows = nn.Parameter(torch.zeros(count, width, device=device))
    tied = head.weight is embedding.weight
    outer = rows if tied else nn.Parameter(torch.zeros_like(rows))
    put(embedding, _NAME, RowsOfEmbedding(rows, start))
    put(head, _NAME, RowsOfHead(outer, start))
    try:
        yield [rows] if tied else [rows, outer]
    finally:
        take(embedding, _NAME)
        take(head, _NAME)


@torch.no_grad()
def _write(network: Network, rows: Sequence[nn.Parameter], start: int) -> None:
    for end, new in zip(_ends(network), rows, strict=False):
        end.weight[start : start + len(new)] += new.to(end.weight.dtype)


def _ends(network: Network) -> tuple[Any, Any]:
    """Return the modules that hold the vocabulary's table, input and output."""
    whole: Any = network.whole
    return whole.get_input_embeddings(), whole.get_output_embeddings()
