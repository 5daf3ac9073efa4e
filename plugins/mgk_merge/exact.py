"""The rule ``exact``: W' = round(W + residual + Δ), weight by weight, all or nothing.

The sum is taken in fp32 (float64 for a float64 base) and rounded once. A bf16 or fp16 weight
keeps S − W' as its residual, which the next merge adds. Contents are exchanged in place: the
Parameter objects and their memory stay, so ties, optimizers and compiled code keep working.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from attrs import evolve
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, ModelState, Target, state_of
from mgk_core.contract.outcome import ByDelta, MergeReport, Proposal
from mgk_core.contract.progress import track
from mgk_core.contract.specs import DeltaSpec
from mgk_merge.check import check
from mgk_merge.delta import delta_of
from mgk_merge.figures import Figures, summary
from mgk_merge.spec import MergeSpec
from mgk_merge.undo import DiskKeeper, ExactUndo, Keeper, MemoryKeeper
from mgk_merge.weight import WeightMerge, blocks, residual_key

_ROUNDED = (torch.bfloat16, torch.float16)
_RESIDUAL = {"fp32": torch.float32, "bf16": torch.bfloat16}


def merge(
    model: nn.Module, adapter: Adapter, proposal: Proposal, spec: MergeSpec
) -> MergeReport:
    """Fold ``adapter`` into the base; see `mgk_core.contract.hookspecs.mgk_merge`.

    :raises MergeError: refused; the model is bit-identical to before
    """
    state = state_of(model)
    state.merged[:] = [
        a for a in state.merged if any(a is b for b in state.adapters)
    ]  # the others are off
    targets = dict(adapter.targets())
    check(state, adapter, proposal, targets)
    residuals = _new_residuals(state, targets, spec)
    undo = ExactUndo(_keeper(proposal, state, targets), state, adapter)
    gradients = torch.is_grad_enabled()
    try:
        with torch.no_grad():
            figures = [
                _merge_weight(undo, t, residuals.get(n), proposal, spec)
                for n, t in track(targets.items(), "weights")
            ]
        report = summary(
            adapter.name, spec.type, figures, residual=spec.residual, undo=undo
        )
        state.merged.append(adapter)
        return report  # inside the try: who gets no report gets no merge either
    except BaseException:
        _restore(undo)
        torch.set_grad_enabled(
            gradients
        )  # an interrupt may fall between entering no_grad and its block
        raise


def merge_changed(
    model: nn.Module, adapter: Adapter, proposal: Proposal, rule: DeltaSpec
) -> MergeReport:
    """Merge what ``rule`` makes of each delta, with everything else as `merge` does it.

    The report does not call itself exact: the merged model is not meant to compute what the
    unmerged one did.
    """
    spec = MergeSpec(type=rule.type)
    changed = evolve(proposal, transforms=(*proposal.transforms, ByDelta(rule)))
    return evolve(merge(model, adapter, changed, spec), exact=False, change=rule.change)


def _merge_weight(
    undo: ExactUndo,
    target: Target,
    after: Tensor | None,
    proposal: Proposal,
    spec: MergeSpec,
) -> Figures:
    state, adapter, keeper = undo.state, undo.adapter, undo.keeper
    name, weight = target.weight, target.parameter.detach()
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    delta, whole = delta_of(adapter, name, target, proposal, wide)
    figures = Figures(name, weight.dtype, tuple(weight.shape))
    work = WeightMerge(
        name, weight, wide, delta, state.residuals.get(name), after, keeper, figures
    )
    for start, stop in blocks(weight, weight.shape[0] if whole else spec.chunk_rows):
        work.block(start, stop)
    if after is None:
        state.residuals.pop(name, None)
    else:
        state.residuals[name] = after
    return figures


def _new_residuals(
    state: ModelState, targets: Mapping[str, Target], spec: MergeSpec
) -> dict[str, Tensor]:
    """Return the tensors that take the new residuals: the old ones where they fit, else new ones."""
    if not spec.residual:
        return {}
    dtype = _RESIDUAL[spec.residual_dtype]
    weights = {
        n: t.parameter.detach()
        for n, t in targets.items()
        if t.parameter.dtype in _ROUNDED
    }
    again = {n: state.residuals[n] for n, w in weights.items() if n in state.residuals}
    again = {
        n: r
        for n, r in again.items()
        if (r.dtype, r.device, r.shape) == (dtype, weights[n].device, weights[n].shape)
    }
    return {
        n: again.get(n, torch.empty(w.shape, dtype=dtype, device=w.device))
        for n, w in weights.items()
    }


def _keeper(
    proposal: Proposal, state: ModelState, targets: Mapping[str, Target]
) -> Keeper:
    tensors = {t.weight: t.parameter.detach() for t in targets.values()}
    tensors |= {
        residual_key(n): state.residuals[n] for n in targets if n in state.residuals
    }
    if proposal.undo == "memory":
        return MemoryKeeper(tensors)
    folder = (
        Path(proposal.spool)
        if proposal.spool
        else Path(tempfile.mkdtemp(prefix="mgk-undo-"))
    )
    return DiskKeeper(folder, tensors)


def _restore(undo: ExactUndo) -> None:
    """Put everything back, also when interrupted again on the way."""
    while True:
        try:
            undo.put_back()
            undo.release()
        except KeyboardInterrupt:
            continue  # the first interrupt is raised once the model is whole
        return
