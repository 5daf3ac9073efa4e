"""Changes to a single delta: DARE, and interpolation with the weights of before.

Each is an entry of a phase's ``transform``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from attrs import frozen

from mgk_core.contract.specs import DeltaSpec, above, between, option

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class DareSpec(DeltaSpec):
    """dare: drop numbers of the delta at random and rescale the rest."""

    drop: float = option(0.9, between(0, 0.999), help="share of the numbers to drop")

    def change(self, name: str, delta: Tensor) -> Tensor:
        """(1 − m) ⊙ δ / (1 − p), m ~ Bernoulli(p) (Yu et al. 2024, arXiv 2311.03099, eq. 2).

        The mask depends on the delta, so that each phase has one of its own and a rebuild the same.
        """
        import torch

        digest = hashlib.sha256(delta.cpu().contiguous().numpy().tobytes()).digest()
        generator = self.generator(name, int.from_bytes(digest[:6], "big"))
        draws = torch.rand(delta.shape, generator=generator)
        return torch.where(draws.to(delta.device) < self.drop, 0.0, delta) / (
            1 - self.drop
        )


@frozen(kw_only=True)
class WiseSpec(DeltaSpec):
    """wise-ft: interpolate between the weights before the phase and after it."""

    alpha: float = option(0.5, above(0), between(0, 1), help="share of the new weights")

    def change(self, name: str, delta: Tensor) -> Tensor:
        """(1 − α) θ_{t−1} + α θ_t = θ_{t−1} + α Δ_t (Wortsman et al. 2022, arXiv 2109.01903, eq. 1)."""
        return self.alpha * delta
