"""Merged against unmerged: the same outputs, within a tolerance from rounding.

The bound is measured, not chosen: every merged weight may differ from the unmerged one by half
a unit in its last place plus the old residual, which is at most half a unit too. So the last bit
of a random half of the entries is flipped (±1 unit), the outputs are compared, the bits are
flipped back, and what that changed, times a factor for the draw, is the bound. Where weights are
as precise as the arithmetic, dot products of length n round as well, with errors that grow as √n
against a change of the weights (Higham 2002, §3.1, with random signs); the bound grows likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import Batch, Bundle
from mgk_core.contract.progress import activity, track

DRAWS = 2
FACTOR = 4.0  # outputs of another random draw stay below 4 times the largest of two
PIECE = 1 << 20
_INTEGER = {4: torch.int32, 2: torch.int16, 8: torch.int64}


@frozen
class Verification:
    """Relative 2-norm error of merged against unmerged outputs, and the tolerance from rounding."""

    error: float
    bound: float
    outputs: int

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound (NaN is not)."""
        return self.error <= self.bound


@torch.no_grad()
def outputs_on(bundle: Bundle, batches: Sequence[Batch]) -> list[Tensor]:
    """Return raw outputs on each batch, in evaluation mode."""
    was_training = bundle.model.training
    bundle.model.eval()
    try:
        with activity("comparing outputs"):
            return [
                bundle.outputs(batch).float().cpu()
                for batch in track(batches, "batches")
            ]
    finally:
        bundle.model.train(was_training)


def relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """‖found − reference‖₂ / ‖reference‖₂ over all batches, in float64."""
    difference = size = 0.0
    for one, other in zip(found, reference, strict=True):
        # In pieces: a wide copy of a vocabulary's logits would be the largest tensor of a run.
        for a, b in zip(
            torch.split(one.flatten(), PIECE),
            torch.split(other.flatten(), PIECE),
            strict=True,
        ):
            wide = b.double()
            difference += float((a.double() - wide).square_().sum())
            size += float(wide.square_().sum())
    return math.sqrt(difference / size) if size > 0 else math.sqrt(difference)


def verify_merged(
    bundle: Bundle,
    adapter: Adapter,
    batches: Sequence[Batch],
    live: Sequence[Tensor],
    *,
    seed: int,
) -> Verification:
    """Compare the merged model (adapter off) with the unmerged (``live``) outputs."""
    merged = outputs_on(bundle, batches)
    error = relative_error(merged, live)
    measured = 0.0
    for draw in range(DRAWS):
        with last_bits_flipped(adapter, seed + draw):
            measured = max(
                measured, relative_error(outputs_on(bundle, batches), merged)
            )
    targets = adapter.targets().values()
    full = any(t.parameter.dtype in (torch.float32, torch.float64) for t in targets)
    inner = max((math.prod(t.parameter.shape[1:]) for t in targets), default=1)
    bound = FACTOR * measured * (math.sqrt(inner) if full else 1.0)
    return Verification(error, bound, sum(t.numel() for t in merged))


@contextmanager
def last_bits_flipped(adapter: Adapter, seed: int) -> Iterator[None]:
    """Flip the last bit of a random half of every target's entries; exactly undone afterwards."""
    _flip(adapter, seed)
    try:
        yield
    finally:
        _flip(adapter, seed)


def _flip(adapter: Adapter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for target in adapter.targets().values():
        data = (
            target.parameter.detach()
        )  # unlike .data, this lets caches see that the weight changed
        if not data.is_floating_point() or data.element_size() not in _INTEGER:
            continue
        bits = data.view(_INTEGER[data.element_size()])
        # Eight entries for each number drawn: one draw an entry took as long as a forward pass.
        drawn = torch.empty((bits.numel() + 7) // 8, dtype=torch.int64).random_(
            generator=generator
        )
        mask = drawn.view(torch.int8)[: bits.numel()].bitwise_and_(1).view(bits.shape)
        bits.bitwise_xor_(mask.to(device=bits.device, dtype=bits.dtype))
