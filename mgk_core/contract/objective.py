"""What a phase minimises, where that is more than the base's own loss of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen
from torch import Tensor

from mgk_core.contract.bundle import Batch


@frozen(eq=False)
class ObjectiveLoss:
    """The loss of one micro-batch.

    total: sum of the loss over what is learned, 0-dim fp32, with its gradient. count: what the sum
    is divided by (pairs, tokens), 0-dim fp32. figures: name → value of each example, (n,), without a
    gradient; their means since the last log event are logged with the loss.
    """

    total: Tensor
    count: Tensor
    figures: Mapping[str, Tensor] = field(factory=dict)


class Objective:
    """Base class of what `mgk_make_objective` returns.

    Everything is a pure function of the rows, the adapter's parameters and torch's random state, so
    that a resumed phase is the same phase. Gradient accumulation adds totals and counts of the
    micro-batches of a step and divides once.
    """

    @property
    def unit(self) -> str:
        """What `ObjectiveLoss.count` counts, for the log."""
        return "examples"

    def prepare(self) -> None:
        """Do what takes long, such as running a reference model over the training set.

        Called once before the first step, and again at resume; ``ctx.files`` may keep the result.
        Not called by ``mgk plan``.
        """

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows of the training set into one micro-batch for `loss`. Pure."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> ObjectiveLoss:
        """Return the loss of a micro-batch that `batch` or `dev` has made."""
        raise NotImplementedError

    def dev(self) -> Sequence[Batch]:
        """Return the micro-batches of the dev set, for ``train.eval_every``; empty where there is none."""
        return ()


__all__ = ["Objective", "ObjectiveLoss"]
