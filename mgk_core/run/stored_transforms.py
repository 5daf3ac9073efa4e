"""Deltas as they were merged, kept on disk so that any prefix of a run can be built again.

A phase without transforms is rebuilt from its adapter alone. With transforms the changed factors
(or, for dense ones, the changed deltas) are written, and read back as one transform.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import evolve, frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter, LowRank
from mgk_core.contract.outcome import FactorTransform, Proposal
from mgk_core.model.lowrank import as_matrix


@frozen(eq=False)
class StoredFactors:
    """A transform whose result is known: each weight's ``a``, already changed."""

    name: str
    factors: Mapping[str, Tensor]

    def right(self, weight: str, a: Tensor) -> Tensor:
        """Return the kept factor. a: (rank, in), only its device counts."""
        return self.factors[weight].to(a.device)

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Factors never come as dense deltas."""
        raise RuntimeError(f"{weight}: kept as factors, asked for as a dense delta")


@frozen(eq=False)
class StoredDeltas:
    """A transform whose result is known: each weight's delta, (out, in), already changed."""

    name: str
    deltas: Mapping[str, Tensor]

    def delta(self, weight: str, delta: Tensor, rows: slice | None) -> Tensor:
        """Return the kept delta, or its rows."""
        kept = self.deltas[weight].to(delta.device)
        return kept if rows is None else kept[rows]


@torch.no_grad()
def materialise(
    adapter: Adapter, proposal: Proposal, base: Mapping[str, Tensor]
) -> tuple[Proposal, dict[str, Tensor]]:
    """Apply a proposal's transforms once; return the proposal with the result, and what to keep.

    base: the base's weights by name. Without transforms nothing is kept.
    """
    if not proposal.transforms:
        return proposal, {}
    name = "+".join(t.name for t in proposal.transforms)
    if isinstance(adapter, LowRank) and all(
        isinstance(t, FactorTransform) for t in proposal.transforms
    ):
        factors = _factors(adapter, proposal)
        if factors is not None:
            kept = {f"factor:{k}": v for k, v in factors.items()}
            return evolve(proposal, transforms=(StoredFactors(name, factors),)), kept
    deltas = {
        n: _dense(adapter, proposal, n, base[n])
        for n, t in adapter.targets().items()
        if t.parameter.dim() > 1
    }
    return evolve(proposal, transforms=(StoredDeltas(name, deltas),)), {
        f"delta:{k}": v for k, v in deltas.items()
    }


def _factors(adapter: LowRank, proposal: Proposal) -> dict[str, Tensor] | None:
    result = {}
    assert isinstance(adapter, Adapter)  # noqa: S101 - the caller's adapter
    for name in adapter.targets():
        factors = adapter.factors(name)
        if factors is None or factors.a0 is not None:
            return None
        a = factors.a.detach().float()
        for transform in proposal.transforms:
            assert isinstance(transform, FactorTransform)  # noqa: S101 - checked by the caller
            a = transform.right(name, a)
        result[name] = a
    return result


def _dense(adapter: Adapter, proposal: Proposal, name: str, weight: Tensor) -> Tensor:
    before = weight.detach().float()
    delta = as_matrix(
        adapter.merged_weight(name, before) - before, adapter.targets()[name]
    )
    for transform in proposal.transforms:
        delta = transform.delta(name, delta, None)
    return delta


def stored_transform(
    name: str, kept: Mapping[str, Tensor]
) -> StoredFactors | StoredDeltas | None:
    """Make the transform that `materialise` made, from what was kept."""
    if not kept:
        return None
    kind, names = (
        next(iter(kept)).split(":")[0],
        {k.split(":", 1)[1]: v for k, v in kept.items()},
    )
    return StoredFactors(name, names) if kind == "factor" else StoredDeltas(name, names)
