"""What merging did to one weight, gathered block by block in the same pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from attrs import define, field
from torch import Tensor

from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import MergeReport, Undo, WeightReport

_BITS = {1: torch.int8, 2: torch.int16}
_TINY, _HUGE = 1e-30, 1e30  # sums of squares outside of this are taken again in float64


@define(eq=False)
class Figures:
    """Sums over the blocks of one weight.

    nonzero: the delta has an entry that is not 0. moved: the visible weight has changed.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nonzero: bool = False
    moved: bool = False
    _sums: list[tuple[float, ...]] = field(factory=list)
    _largest: float = 0.0
    _error: float = 0.0

    def add(
        self, delta: Tensor, old: Tensor, visible: Tensor, carried: Tensor | None
    ) -> None:
        """Take in one block of contiguous tensors, fp32 or wider.

        delta: what was to be added. old: the weight before. visible: W' − W. carried: what the
        residual absorbed, None where there is none.

        :raises MergeError: something is NaN or infinite
        """
        delta, old, visible = delta.view(-1), old.view(-1), visible.view(-1)
        carried = None if carried is None else carried.view(-1)
        sums = _dots(delta, old, visible, carried)
        if not (_TINY < sums[0] < _HUGE and all(map(math.isfinite, sums))):
            sums = _dots(
                delta.double(),
                old.double(),
                visible.double(),
                None if carried is None else carried.double(),
            )
            if not all(map(math.isfinite, sums)):
                self._refuse(delta, old)
        self.nonzero = self.nonzero or sums[0] > 0 or bool(delta.any())
        self.moved = self.moved or sums[2] != 0 or bool(visible.any())
        self._sums.append(sums)

    def rounded(self, new: Tensor, error: Tensor) -> None:
        """Take in the largest W', in the weight's own dtype, and the largest S − W' of one block."""
        bits = _BITS[self.dtype.itemsize]
        magnitude = (
            new.view(bits).bitwise_and(torch.iinfo(bits).max).amax()
        )  # ordered as the numbers are
        self._largest = max(self._largest, float(magnitude.view(self.dtype)))
        self._error = max(
            self._error, float(error.amax()), -float(error.amin())
        )  # faster than aminmax

    @property
    def totals(self) -> tuple[float, float, float, float]:
        """‖Δ‖², ‖W‖², ⟨W' − W, Δ⟩ and the same with the residual."""
        columns = zip(*self._sums, strict=True) if self._sums else ((), (), (), ())
        a, b, c, d = (math.fsum(column) for column in columns)
        return a, b, c, d

    def report(self) -> WeightReport:
        """Return the figures of this weight."""
        delta, weight, visible, total = self.totals
        ulp = (
            torch.finfo(self.dtype).eps * 2.0 ** math.floor(math.log2(self._largest))
            if self._largest > 0
            else 0.0
        )
        return WeightReport(
            name=self.name,
            dtype=str(self.dtype).removeprefix("torch."),
            shape=self.shape,
            delta_norm=math.sqrt(delta),
            weight_norm=math.sqrt(weight),
            kept=_share(visible, delta),
            kept_total=_share(total, delta),
            max_error=self._error,
            bound=ulp / 2,
        )

    def _refuse(self, delta: Tensor, old: Tensor) -> None:
        if not torch.isfinite(old).all():
            what = "the base's own weight is not finite; load a whole base"
        elif not torch.isfinite(delta).all():
            what = "the adapter's delta is not finite; go back to a checkpoint before the loss diverged"
        else:
            what = f"the merged weight does not fit {str(self.dtype).removeprefix('torch.')}; merge a smaller scale"
        raise MergeError(f"{self.name}: {what}. Nothing was changed.")


def summary(
    adapter: str, rule: str, figures: Sequence[Figures], *, residual: bool, undo: Undo
) -> MergeReport:
    """Return the report of a whole merge.

    :raises MergeError: there was nothing to merge, or nothing of it arrived
    """
    if not any(f.nonzero for f in figures):
        raise MergeError(
            f"adapter {adapter!r}: the delta of every weight is zero: there is nothing to merge; train it first"
            " (is its learning rate 0, or its loss without a gradient?)"
        )
    if not residual and not any(f.moved for f in figures):
        raise MergeError(
            f"adapter {adapter!r}: no weight can hold its delta in its dtype, so merging would do nothing;"
            " use residual = true, or a base in fp32"
        )
    totals = [
        math.fsum(column) for column in zip(*(f.totals for f in figures), strict=True)
    ]
    weights = tuple(f.report() for f in figures)
    return MergeReport(
        adapter=adapter,
        rule=rule,
        weights=weights,
        kept=_share(totals[2], totals[0]),
        kept_total=_share(totals[3], totals[0]),
        max_error=max(w.max_error for w in weights),
        relative=math.sqrt(totals[0] / totals[1]) if totals[1] else math.inf,
        warnings=_warnings(figures, residual=residual),
        undo=undo,
    )


def _warnings(figures: Sequence[Figures], *, residual: bool) -> tuple[str, ...]:
    zero = [f.name for f in figures if not f.nonzero]
    unmoved = [f.name for f in figures if f.nonzero and not f.moved]
    warnings = []
    if zero:
        warnings.append(f"{_some(zero)}: the delta is zero")
    if unmoved:
        held = (
            "it is held by the residual alone"
            if residual
            else "it is lost (residual = false)"
        )
        warnings.append(
            f"{_some(unmoved)}: the delta is below the weight's precision: {held}"
        )
    return tuple(warnings)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (
        f" and {len(names) - 4} more" if len(names) > 4 else ""
    )


def _dots(
    delta: Tensor, old: Tensor, visible: Tensor, carried: Tensor | None
) -> tuple[float, ...]:
    with np.errstate(all="ignore"):  # what is not finite is seen by the caller
        seen = _dot(visible, delta)
        kept = seen if carried is None else seen + _dot(carried, delta)
        return _dot(delta, delta), _dot(old, old), seen, kept


def _dot(one: Tensor, other: Tensor) -> float:
    """Return the inner product; numpy's BLAS takes half the time of torch's for a vector with itself."""
    return float(
        np.dot(one.numpy(), other.numpy()) if one.is_cpu else torch.dot(one, other)
    )


def _share(part: float, whole: float) -> float:
    """Return part / whole; a delta of zero is wholly kept."""
    return part / whole if whole > 0 else 1.0
