"""Merge rules for a quantized base: its packed weights give way to full-precision ones, and those are merged into.

``dequantized``: W' = Q(W) + ΔW, Q(W) the numbers that the packed weight represents. ``original``: W' = W + ΔW
with the weights that were quantized, read from the base's source; the adapter was trained on top of Q(W), so what
it computed is not what comes out, and the report states how far apart the two are and never that it is exact.

Both merge into Q(W) first, the weights of the unmerged model, and compare with it; then W − Q(W), if there is any,
is added. Every packed weight of the model is exchanged, not the adapter's alone, so the next phase
trains in full precision: the dtype of what is not packed, with what bf16 cannot hold as residual. With
``requantize`` it trains on requantized weights, and W' − Q(W') is kept as the model's residual: the W − Q(W) of the
next merge (`mgk_hf.requantize`).

Undoing puts the packed modules and the residuals back as they were.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import torch
from attrs import define, evolve, field
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, ModelState, state_of
from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import MergeReport, Proposal, Undo
from mgk_core.contract.peers import peers
from mgk_hf.packed import Packed, packed_in
from mgk_hf.quantized import dequantize
from mgk_hf.requantize import add_held, distances_of, fill_plain, pack_anew
from mgk_hf.specs import UnpackSpec

Originals = Callable[[], Mapping[str, Tensor]]

sources: weakref.WeakKeyDictionary[nn.Module, Originals] = weakref.WeakKeyDictionary()
"""Model → what reads the weights that were quantized; noted when a quantized base is loaded."""


@define(eq=False)
class UnpackUndo:
    """Undoes the merge, then the exchange, and restores the residuals that the merge consumed."""

    state: ModelState
    packed: list[Packed] = field(repr=False)
    inner: Undo | None = None
    _residuals: dict[str, Tensor] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._residuals = dict(self.state.residuals)

    def restore(self) -> None:
        """Put every old tensor back, then every packed module and residual."""
        if self.inner is not None:
            self.inner.restore()
        for module in self.packed:
            module.put_back()
        self.state.residuals.clear()
        self.state.residuals.update(self._residuals)

    def release(self) -> None:
        """Forget the old weights."""
        if self.inner is not None:
            self.inner.release()
        self.packed.clear()
        self._residuals = {}


def merge(
    model: nn.Module, adapter: Adapter, proposal: Proposal, spec: UnpackSpec
) -> MergeReport:
    """Exchange packed weights for plain ones and merge exactly; see `mgk_core.contract.hookspecs.mgk_merge`.

    :raises MergeError: refused; the model is bit-identical to before
    """
    if proposal.transforms:
        raise MergeError(
            f"the rule {spec.type!r} merges a whole or scaled delta; expected no transform of it, got"
            f" {', '.join(t.name for t in proposal.transforms)}: leave covariance-merge out of phases on a quantized base"
        )
    packed = packed_in(model)
    if not packed and spec.requantize:
        raise MergeError(
            "merge.requantize needs a quantized base, and no weight of this model is quantized; leave it out"
        )
    if not packed:  # a later phase, in full precision
        return evolve(_merge_exactly(model, adapter, proposal), rule=spec.type)
    undo = UnpackUndo(state_of(model), packed)
    try:
        return _merge(model, adapter, proposal, spec, undo)
    except BaseException:
        undo.restore()
        raise


def _merge_exactly(
    model: nn.Module, adapter: Adapter, proposal: Proposal
) -> MergeReport:
    others = peers()
    return others.merge(
        model, adapter, proposal, others.spec("merge", {"type": "exact"})
    )


@torch.no_grad()
def _merge(
    model: nn.Module,
    adapter: Adapter,
    proposal: Proposal,
    spec: UnpackSpec,
    undo: UnpackUndo,
) -> MergeReport:
    residuals, again = undo.state.residuals, spec.requantize and not proposal.last
    kept = {p.name: residuals.pop(p.name) for p in undo.packed if p.name in residuals}
    held = kept or _beside_originals(model, undo.packed, spec)
    apart = distances_of(undo.packed, held)
    dtype = _around(model)
    for module in undo.packed:
        fill_plain(module, dtype, residuals)
    report = _merge_exactly(model, adapter, proposal)
    undo.inner = report.undo
    # int8 rounds activations too: its live outputs are those of no weight, so nothing can equal them.
    same = all(p.kind != "int8" for p in undo.packed)
    if same and (held or again) and proposal.verify is not None:
        proposal.verify()
    told = [*_told(apart, kept=bool(kept)), *([] if same else [_INT8])]
    if again:
        report, how = pack_anew(undo.packed, held, residuals, adapter, report)
        told.append(how)
    else:
        add_held(undo.packed, held, residuals)
        told += [_LAST] if spec.requantize else []
    return evolve(
        report,
        rule=spec.type,
        exact=same and not held and not again,
        warnings=(*report.warnings, *told),
        undo=undo,
    )


def _around(model: nn.Module) -> torch.dtype:
    """Return the dtype of the hidden states that a plain weight will meet: the embedding's."""
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return table.dtype


_INT8 = "the int8 base rounded activations, so merged and unmerged outputs were not compared; not exact"
_LAST = "no phase comes after, so the weights stay in full precision (requantize)"


def _beside_originals(
    model: nn.Module, packed: list[Packed], spec: UnpackSpec
) -> dict[str, Tensor]:
    """Return W − Q(W) by weight name, W read from the base's source; empty for the rule that leaves it out."""
    if spec.type != "original":
        return {}
    read = sources.get(model)
    if read is None:
        raise MergeError(
            "the rule 'original' needs the source of the quantized base, and this model names none"
        )
    originals = read()
    found = {}
    for module in packed:
        weight, own = dequantize(module.module), originals.get(module.name)
        if own is None or own.shape != weight.shape:
            raise MergeError(
                f"{module.name}: the base's source has no such weight; expected one of {tuple(weight.shape)}"
            )
        found[module.name] = own.float() - weight.cpu()
    return found


def _told(apart: Mapping[str, float], *, kept: bool) -> tuple[str, ...]:
    """Describe how far the weights that were merged into are from those that the adapter was trained on."""
    if not apart:
        return ()
    which = "full-precision weights that were kept" if kept else "original weights"
    told = (
        f"merged into the {which}, which the adapter was not trained beside: ‖W − Q(W)‖ / ‖W‖ is"
        f" {sum(apart.values()) / len(apart):.3g} on average, at most {max(apart.values()):.3g}; not exact"
    )
    return (told,)
