"""The vocabulary head and its cross-entropy, computed where a label is, in one pass over W.

For hidden states h (N, D), head weight W (V, D) and labels y (N,), with logits z = h Wᵀ:

    nll = Σ_i logsumexp_j(z_ij) − z_{i y_i}        ∂nll/∂h_i = Σ_j softmax(z_i)_j W_j − W_{y_i}

Both sums run over the vocabulary in blocks with a running maximum, as flash attention does
(Milakov & Gimelshein 2018, arXiv 1805.02867): a block's logits live in a reused buffer, are used
for the sum and for the gradient, and are gone. W is read once and no (N, V) tensor ever exists.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgk_hf.cpu.screen import Screen, screened_pass
from mgk_hf.precision import WideLinear

BLOCK_BYTES = 8 << 20
"""Size of one block of logits on the CPU: small enough for the caches, large enough for the products."""

DEVICE_BLOCK_BYTES = 256 << 20
"""The same elsewhere: few large products, and an eighth of what all logits of 2,048 positions of Gemma need."""

PLAIN_CHUNK = 128
"""Positions per chunk on the plain path; 16 to 32 are much slower, since W is read for each chunk."""


@frozen(eq=False)
class Head:
    """The last step of a causal language model.

    module: maps hidden states to logits; what an adapter on it adds is seen by the plain path.
    softcap: logits become ``c · tanh(z / c)`` (Gemma 2), None for none. scale: what logits are
    multiplied by before that (Cohere, Granite). screen: int8 image of the table that losses and
    scores may use (see `mgk_hf.cpu.screen`); `logits` never does.
    """

    module: nn.Module
    softcap: float | None = None
    scale: float = 1.0
    screen: Screen | None = None

    @property
    def fast(self) -> bool:
        """Return whether the head is currently bare and frozen.

        An adapter gives the module it wraps a class of its own, and a quantized weight is not a
        floating-point tensor: both take the plain path.
        """
        if type(self.module) not in {nn.Linear, WideLinear}:
            return False
        frozen_ = not any(p.requires_grad for p in self.module.parameters())
        return frozen_ and self.module.weight.is_floating_point()  # type: ignore[operator]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits. hidden: (N, D)   returns (N, V)."""
        z: Tensor = self.module(
            hidden * self.scale if self.scale != 1 else hidden
        ).float()
        return (
            z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
        )

    def logprob(self, hidden: Tensor, place: Tensor, tokens: Tensor) -> Tensor:
        """Return log p(token | hidden state), (M,) fp32, where several tokens share a state.

        hidden: (N, D)   place: (M,) row of ``hidden`` for each token   tokens: (M,)
        """
        if not self.fast:
            return torch.cat(
                [
                    torch.log_softmax(self.logits(hidden[p]), 1)
                    .gather(1, t[:, None])
                    .squeeze(1)
                    for p, t in zip(
                        torch.split(place, PLAIN_CHUNK),
                        torch.split(tokens, PLAIN_CHUNK),
                        strict=True,
                    )
                ]
            )
        table = self._table()
        h = hidden.float() * self.scale
        whole, _ = table.normaliser(h, None, gradient=False)
        z, _ = own_logits(h[place], table, tokens)
        return (z - whole[place]).squeeze(1)

    def nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the summed negative log-likelihood, a 0-dim fp32 tensor. hidden: (N, D), labels: (N,)."""
        return self.token_nll(hidden, labels).sum()

    def token_nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return each label's negative log-likelihood, (N,) fp32."""
        if labels.numel() == 0:
            return hidden.sum() * 0.0 + hidden.new_zeros(0, dtype=torch.float32)
        if self.fast:
            states = hidden * self.scale if self.scale != 1 else hidden
            result: Tensor = _HeadNll.apply(states, self._table(), labels)  # type: ignore[no-untyped-call]
            return result
        return self._plain(hidden, labels)

    def _table(self) -> Table:
        weight: Any = self.module.weight
        return Table(
            weight.detach(),
            getattr(self.module, "bias", None),
            self.softcap,
            self.screen,
        )

    def _plain(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Chunks of positions through the module itself, recomputed in the backward pass."""

        def chunk(h: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.logits(h), y, reduction="none")

        parts = [
            checkpoint(chunk, h, y, use_reentrant=False)
            for h, y in zip(
                torch.split(hidden, PLAIN_CHUNK),
                torch.split(labels, PLAIN_CHUNK),
                strict=True,
            )
        ]
        return torch.cat(parts)


@frozen(eq=False)
class Table:
    """A bare frozen head: W (V, D), b (V,) or None, the logit cap, and the image to screen with."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    screen: Screen | None = None

    @property
    def products(self) -> torch.dtype:
        """What the products multiply: fp32 on a CPU; elsewhere the weight's 16 bits, summed in fp32.

        Tensor cores multiply 16 bits at ten times the pace, and transformers multiplies them too. Its
        logits are rounded to 16 bits besides; here they are not.
        """
        narrow = self.weight.dtype in (torch.bfloat16, torch.float16)
        return (
            self.weight.dtype
            if narrow and self.weight.device.type == "cuda"
            else torch.float32
        )

    def normaliser(
        self, h: Tensor, own: Tensor | None, *, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return (log Σ_j exp z_j (N, 1), Σ_j softmax(z)_j ∂z_j/∂h (N, D) or None).

        h: (N, D) fp32   own: (N, 1) exact logits of the labels, a first guess of the maximum
        """
        if self.screen is None or self.bias is not None or self.softcap is not None:
            return vocabulary_pass(h, self, gradient=gradient)
        self.screen.follow(self.weight)
        if own is None:
            own = (h * self.weight[:1].float()).sum(1, keepdim=True)
        found = screened_pass(h, self.weight, self.screen, own, gradient=gradient)
        return found or vocabulary_pass(h, self, gradient=gradient)


class _HeadNll(torch.autograd.Function):
    """Token NLL whose gradient is made in the forward pass, while a block's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Table, labels: Tensor) -> Tensor:
        nll, gradient = head_pass(
            hidden, table, labels, gradient=ctx.needs_input_grad[0]
        )
        if gradient is not None:
            ctx.save_for_backward(gradient.to(hidden.dtype))
        return nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None


def head_pass(
    hidden: Tensor, table: Table, labels: Tensor, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return (token NLL (N,) fp32, ∂ΣNLL/∂hidden (N, D) fp32 or None)."""
    h = hidden.detach().float()
    z, push = own_logits(h, table, labels)
    logsumexp, pull = table.normaliser(h, z, gradient=gradient)
    nll = (logsumexp - z).squeeze(1)
    return nll, None if pull is None else pull.sub_(push)


def vocabulary_pass(
    h: Tensor, table: Table, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Run over the vocabulary once; see `Table.normaliser`. h: (N, D) fp32."""
    weight, bias, softcap = table.weight, table.bias, table.softcap
    products = _products(h, table)
    count = h.shape[0]
    top = h.new_full((count, 1), -torch.inf)
    total = h.new_zeros(count, 1)
    pull = torch.zeros_like(h) if gradient else None
    for start in range(0, weight.shape[0], products.block):
        w = products.rows(start)  # (b, D)
        z = products.logits(w)  # (N, b)
        if bias is not None:
            z += bias[start : start + len(w)]
        slope = _cap_(z, softcap, slope=gradient)
        peak = torch.maximum(top, z.amax(1, keepdim=True))
        shrink = top.sub_(peak).exp_()
        z.sub_(peak).exp_()
        total.mul_(shrink).add_(z.sum(1, keepdim=True))
        if pull is not None:
            products.add(pull.mul_(shrink), z if slope is None else z.mul_(slope), w)
        top = peak
    return top + total.log(), None if pull is None else pull.div_(total)


def _products(h: Tensor, table: Table) -> WideProducts | NarrowProducts:
    """Return the products of one pass. h: (N, D) fp32."""
    narrow = table.products != torch.float32
    room = DEVICE_BLOCK_BYTES if h.device.type == "cuda" else BLOCK_BYTES
    block = min(table.weight.shape[0], max(512, room // (4 * h.shape[0])))
    if narrow:
        return NarrowProducts(h.to(table.products), table.weight, block)
    return WideProducts.of(h, table.weight, block)


@frozen(eq=False)
class WideProducts:
    """fp32 products with the rows of a table, widened where it is stored in fewer bits.

    buffer: (N · block,) for the logits of one block. wide: (block, D) for its rows, None where they are fp32.
    """

    h: Tensor
    weight: Tensor
    block: int
    buffer: Tensor
    wide: Tensor | None

    @staticmethod
    def of(h: Tensor, weight: Tensor, block: int) -> WideProducts:
        """Make the buffers."""
        wide = weight.dtype != torch.float32
        rows = h.new_empty(block, h.shape[1]) if wide else None
        return WideProducts(h, weight, block, h.new_empty(h.shape[0] * block), rows)

    def rows(self, start: int) -> Tensor:
        """Return the rows of one block, (b, D) fp32."""
        part = self.weight[start : start + self.block]
        return part if self.wide is None else self.wide[: len(part)].copy_(part)

    def logits(self, w: Tensor) -> Tensor:
        """h wᵀ, (N, b) fp32, until the next call."""
        out = self.buffer[: len(self.h) * len(w)].view(len(self.h), -1)
        return torch.mm(self.h, w.t(), out=out)

    def add(self, total: Tensor, p: Tensor, w: Tensor) -> None:
        """Add p w to ``total`` (N, D). p: (N, b)."""
        total.addmm_(p, w)


@frozen(eq=False)
class NarrowProducts:
    """Products of 16-bit numbers summed in fp32. h: (N, D) in the weight's dtype."""

    h: Tensor
    weight: Tensor
    block: int

    def rows(self, start: int) -> Tensor:
        """Return the rows of one block as they are stored, (b, D)."""
        return self.weight[start : start + self.block]

    def logits(self, w: Tensor) -> Tensor:
        """h wᵀ, (N, b) fp32."""
        return mm_wide(self.h, w.t())

    def add(self, total: Tensor, p: Tensor, w: Tensor) -> None:
        """Add p w to ``total`` (N, D). p: (N, b) fp32, rounded to the weight's dtype."""
        total.add_(mm_wide(p.to(w.dtype), w))


def mm_wide(a: Tensor, b: Tensor) -> Tensor:
    """a b in fp32 of 16-bit matrices; the CPU, which has no such product, widens them first."""
    if a.device.type == "cuda" and hasattr(torch.ops.aten.mm, "dtype"):
        wide: Tensor = torch.ops.aten.mm.dtype(a, b, torch.float32)
        return wide
    return a.float() @ b.float()


def own_logits(h: Tensor, table: Table, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the labels' own logits (N, 1), their gradient ∂z/∂h (N, D)). h: (N, D) fp32."""
    own = table.weight[labels].float()  # (N, D)
    z = (h * own).sum(1, keepdim=True)
    if table.bias is not None:
        z += table.bias.detach()[labels, None].float()
    slope = _cap_(z, table.softcap, slope=True)
    return z, own if slope is None else own * slope


def _cap_(z: Tensor, softcap: float | None, *, slope: bool) -> Tensor | None:
    """Cap logits in place; return d cap(z) / dz = 1 − (cap(z) / c)² where it is asked for."""
    if softcap is None:
        return None
    z.div_(softcap).tanh_()
    derivative = 1 - z * z if slope else None
    z.mul_(softcap)
    return derivative
