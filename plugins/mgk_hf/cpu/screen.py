"""The vocabulary head screened in int8: exact where the probability is, cheap where it is not.

Nearly all of a vocabulary has next to no probability at a position. So all logits are computed in
int8 first (several times as fast as fp32 on CPUs with VNNI or AMX), and what carries weight is
corrected: every token with p > `EXACT` gets its logit in fp32, every token with p > `KEPT` takes part
in the gradient, and the rest enters the normaliser by its int8 logit alone.

With δ the error of an int8 logit (about 0.1 on Gemma 3 270M after the equalisation below) and m the
probability below `EXACT` (about 0.02), the normaliser is off by about m·E[e^δ − 1] ≈ 1e-4, and the
gradient by its share below `KEPT`, about 1e-3 of its length; bf16 products are off by 4e-3.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from mgk_core.contract.progress import activity, track

EXACT = 1e-4
KEPT = 3e-6
BLOCK = 4096
GROUP = 64
"""Logits whose maximum is looked at before they are: most groups hold nothing of weight."""

Block = tuple[Tensor, Tensor, Tensor]
"""Packed rows, their scales (b,), their zeros (b,)."""

NOTES = 1 << 24
"""Tokens of weight noted at once, 20 bytes each. Where more than these are left, nothing is light enough to screen."""

GATHER = 8192
"""Rows of the table that are widened at once for the gradient: 21 MB for Gemma."""


@define(eq=False)
class Screen:
    """An int8 image of a frozen table W (V, D), in blocks of rows.

    equal: (D,) factors; W·equal and h/equal have columns of similar size, so that no few
    dimensions use up the int8 range (Xiao et al. 2022, SmoothQuant, arXiv 2211.10438). Chosen once,
    so that a resumed run computes what the first one did. state: which contents of W it shows.
    """

    equal: Tensor
    state: tuple[int, int] = (0, -1)
    blocks: list[Block] = field(factory=list, repr=False)

    @staticmethod
    def of(weight: Tensor, sizes: Tensor) -> Screen:
        """Make the image. sizes: (D,) how large the hidden states' dimensions are."""
        top = torch.stack(
            [part.abs().amax(0).float() for part in torch.split(weight, BLOCK)]
        ).amax(0)
        screen = Screen((sizes.float().clamp(min=1e-6) / top.clamp(min=1e-6)).sqrt())
        screen.follow(weight)
        return screen

    def follow(self, weight: Tensor) -> None:
        """Rebuild the image where the table has changed since (a merge into the vocabulary)."""
        state = (weight.data_ptr(), weight._version)  # noqa: SLF001 - torch has no public name for it
        if self.state == state:
            return
        with activity("quantizing the vocabulary"):
            self.blocks = [
                _image(part.detach().float() * self.equal)
                for part in track(torch.split(weight, BLOCK), "blocks")
            ]
        self.state = state

    def logits(self, h: Tensor) -> Iterator[Tensor]:
        """Yield approximate logits block by block. h: (N, D) fp32   yields (N, b) fp32."""
        top = largest_activation()
        assert top is not None  # noqa: S101 - `supported` has checked it
        h = h / self.equal
        size = h.abs().amax(1, keepdim=True).clamp(min=1e-30)
        # Each row by its own size; unsigned with its zero in the middle, as the products want it.
        whole = (h / size).mul_(top).round_().add_(top + 1).to(torch.uint8)
        for rows, scale, zero in self.blocks:
            yield _products(whole, top, (rows, scale, zero)).mul_(size)


def _image(rows: Tensor) -> Block:
    """Quantize rows symmetrically, one scale each, and pack them for the products."""
    scale = rows.abs().amax(1).clamp(min=1e-30) / 127
    whole = (rows / scale[:, None]).round_().to(torch.int8)
    packed: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
    return packed, scale, torch.zeros(len(rows), dtype=torch.int64)


def _products(whole: Tensor, top: int, block: Block) -> Tensor:
    """Return (whole − (top + 1)) / top · rowsᵀ · scales. whole: (N, D) uint8   returns (N, b) fp32."""
    rows, scale, zero = block
    output: tuple[Any, ...] = (
        None,
        1.0,
        0,
        torch.float32,
    )  # bias, scale, zero point, dtype
    epilogue: tuple[Any, ...] = ("none", [], "")
    z: Tensor = torch.ops.onednn.qlinear_pointwise(
        whole, 1 / top, top + 1, rows, scale, zero, *output, *epilogue
    )
    return z


@functools.cache
def largest_activation() -> int | None:
    """Return up to which integer activations may go so that this machine's int8 products are right.

    127 with VNNI or AMX. Without them the CPU adds pairs of u8·s8 products in 16 bits, which saturate
    above 32,767: 255·127 + 255·127 does, 127·127 + 127·127 does not, so activations of seven bits (63
    around their zero) are right there. Found out by comparing products, not by asking for a feature.
    None: neither is right, or this torch has no such product.
    """
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return None
    return next((top for top in (127, 63) if _right(top)), None)


def _right(top: int) -> bool:
    """Whether the largest products that can arise, all of one sign, come out exact."""
    activations = torch.tensor([[top], [-top]]).expand(2, 256)
    block = _image(torch.ones(64, 256))  # 127 each, with scale 1/127
    found = _products((activations + top + 1).to(torch.uint8), top, block)
    return bool((found - torch.tensor([[256.0], [-256.0]])).abs().max() < 1e-3)


def supported(weight: Tensor) -> bool:
    """Whether screening pays and works here: a large table on a CPU whose int8 products are right.

    It pays wherever it works: int8 products are 2 to 2.5 times as fast as fp32 on CPUs with AVX2
    only, more on those with VNNI or AMX (docs/benchmarks.md).
    """
    return (
        weight.device.type == "cpu"
        and weight.shape[0] >= 32768
        and largest_activation() is not None
    )


@frozen(eq=False)
class Found:
    """Tokens with probability, as triplets. row, token: (M,) int64   z: (M,) fp32 logits."""

    row: Tensor
    token: Tensor
    z: Tensor

    @staticmethod
    def none(like: Tensor) -> Found:
        """Return no triplets, with logits like some given ones."""
        nothing = torch.zeros(0, dtype=torch.int64, device=like.device)
        return Found(nothing, nothing, like.new_zeros(0))

    @staticmethod
    def together(parts: Sequence[Found]) -> Found:
        """Return the triplets of all parts."""
        return Found(
            *(
                torch.cat([getattr(p, name) for p in parts])
                for name in ("row", "token", "z")
            )
        )

    def where(self, mask: Tensor) -> Found:
        """Return the triplets that a mask keeps."""
        return Found(self.row[mask], self.token[mask], self.z[mask])


def screened_pass(
    h: Tensor, weight: Tensor, screen: Screen, own: Tensor, *, gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Return (log Σ_j exp z_j (N, 1), Σ_j softmax(z)_j W_j (N, D) or None); None where too many tokens carry weight.

    h: (N, D) fp32   own: (N, 1) any exact logit of each row, a first guess of where its weight is
    """
    scanned = _scan(h, screen, own, math.log(KEPT if gradient else EXACT))
    if scanned is None:
        return None
    top, total, found = scanned
    whole = top + total.log()
    found = found.where(
        found.z > whole[found.row, 0] + math.log(KEPT if gradient else EXACT)
    )
    heavy = (found.z > whole[found.row, 0] + math.log(EXACT)).nonzero().squeeze(1)
    right = _exact_logits(h, weight, found.row[heavy], found.token[heavy])
    change = (right - top[found.row[heavy], 0]).exp() - (
        found.z[heavy] - top[found.row[heavy], 0]
    ).exp()
    total.squeeze(1).index_add_(0, found.row[heavy], change)
    found.z[heavy] = right
    whole = top + total.log()
    if not gradient:
        return whole, None
    return whole, _weighted_rows(
        weight, found, (found.z - whole[found.row, 0]).exp(), h.shape[0]
    )


def _scan(
    h: Tensor, screen: Screen, own: Tensor, floor: float
) -> tuple[Tensor, Tensor, Found] | None:
    """Sum over all blocks with a running maximum, noting every token within ``floor`` of the whole, or nearly.

    None where more than `NOTES` are: an untrained model gives every token about the same probability.
    """
    top, total = own.clone(), torch.zeros_like(own)
    notes = [Found.none(own)]
    for number, z in enumerate(screen.logits(h)):
        peaks = (
            z.view(len(z), -1, GROUP).amax(2) if z.shape[1] % GROUP == 0 else z
        )  # (N, b/GROUP)
        peak = torch.maximum(top, peaks.amax(1, keepdim=True))
        total.mul_((top - peak).exp_())
        top = peak
        least = top + total.log().clamp(
            min=0
        )  # the sum so far, or its largest term: the whole is no less
        row, token, values = _above(z, peaks, least + floor)
        notes.append(Found(row, token.add_(number * BLOCK), values))
        total.add_(z.sub_(top).exp_().sum(1, keepdim=True))
        if (
            sum(len(note.z) for note in notes) > NOTES
        ):  # many were noted before the maximum was known
            whole = Found.together(notes)
            notes = [whole.where(whole.z > top[whole.row, 0] + floor)]
            if len(notes[0].z) > NOTES:
                return None
    return top, total, Found.together(notes)


def _above(z: Tensor, peaks: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rows, columns, values) above ``floor`` (N, 1), looking only where a group's peak is."""
    width = z.shape[1] // peaks.shape[1]
    group = (
        (peaks > floor).view(-1).nonzero().squeeze(1)
    )  # flat indices into (N, b/width)
    row = group.div(peaks.shape[1], rounding_mode="floor")
    near = z.reshape(-1, width)[group]  # (G, width)
    inside = (near > floor[row]).view(-1).nonzero().squeeze(1)
    place = inside.div(width, rounding_mode="floor")
    column = (group - row * peaks.shape[1])[place] * width + (inside - place * width)
    return row[place], column, near.view(-1)[inside]


def _exact_logits(h: Tensor, weight: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """(M,) fp32 logits of single (row, token) pairs.

    Row by row: a row's few hundred tokens are widened in the processor's cache and used at once,
    two to four times as fast as gathering both sides of all pairs.
    """
    order = row.argsort(stable=True)
    counts = torch.bincount(row, minlength=len(h)).tolist()
    parts = [
        weight[t].float().mv(x)
        for x, t in zip(h, torch.split(token[order], counts), strict=True)
    ]
    return h.new_empty(len(row)).index_copy_(0, order, torch.cat(parts))


def _weighted_rows(weight: Tensor, found: Found, p: Tensor, count: int) -> Tensor:
    """Σ p W[token] per row, (count, D): a sparse matrix of probabilities times the rows it names."""
    used = torch.zeros(weight.shape[0], dtype=torch.bool)
    used[found.token] = True
    tokens = used.nonzero().squeeze(1)
    column = (used.cumsum(0) - 1)[found.token]
    order = column.argsort(stable=True)
    total = p.new_zeros(count, weight.shape[1])
    ends = torch.searchsorted(
        column[order], torch.arange(0, len(tokens) + GATHER, GATHER)
    ).tolist()
    for i, (first, last) in enumerate(pairwise(ends)):
        mine, start = order[first:last], i * GATHER
        rows = weight[tokens[start : start + GATHER]].float()
        total += (
            _sparse(found.row[mine], column[mine] - start, p[mine], (count, len(rows)))
            @ rows
        )
    return total


def _sparse(
    row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Return triplets as a matrix in compressed rows."""
    order = row.argsort(stable=True)
    start = torch.zeros(shape[0] + 1, dtype=torch.long)
    start[1:] = torch.bincount(row, minlength=shape[0]).cumsum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse matrices beta
        return torch.sparse_csr_tensor(start, column[order], values[order], shape)
