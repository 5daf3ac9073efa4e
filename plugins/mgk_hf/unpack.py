"""Merge rules for a quantized base: its packed weights give way to full-precision ones, and those are merged into.

``dequantized``: W' = Q(W) + ΔW, Q(W) the numbers that the packed weight stands for. ``original``: W' = W + ΔW
with the weights that were quantized, as they stand at the base's source; the adapter was trained beside Q(W), so
what it computed is not what comes out, and the report says how far the two are apart and never that it is exact.

Every packed weight of the model is exchanged, not the adapter's alone, so the next phase trains in full precision.
Undoing puts the packed modules back as they were.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from mgk_core.adapter import Adapter
from mgk_core.api import merge_by
from mgk_core.errors import MergeError
from mgk_core.inject import adapted_class, is_adapted
from mgk_core.outcome import MergeReport, Proposal, Undo
from mgk_hf.quantized import dequantize, is_packed
from mgk_hf.specs import UnpackSpec

Originals = Callable[[], Mapping[str, Tensor]]

sources: weakref.WeakKeyDictionary[nn.Module, Originals] = weakref.WeakKeyDictionary()
"""Model → what reads the weights that were quantized; noted when a quantized base is loaded."""


@frozen(eq=False)
class Packed:
    """One quantized module as it was: what is put back when a merge is undone."""

    name: str
    module: nn.Module
    cls: type[nn.Module]
    weight: nn.Parameter

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Packed:
        """Note a module."""
        weight = module._parameters["weight"]  # noqa: SLF001 - the Parameter itself, with what bitsandbytes hangs on it
        assert weight is not None  # noqa: S101 - it is what makes the module a packed one
        return cls(name, module, type(module), weight)

    def fill(self, weight: Tensor) -> None:
        """Make a plain linear layer of the module, with this weight. Parts of adapters stay on it."""
        self.module.__class__ = adapted_class(nn.Linear) if is_adapted(self.module) else nn.Linear
        self.module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)  # noqa: SLF001

    def put_back(self) -> None:
        """Make the quantized module again."""
        self.module.__class__ = self.cls
        self.module._parameters["weight"] = self.weight  # noqa: SLF001


@frozen(eq=False)
class UnpackUndo:
    """Undoes the merge, then the exchange."""

    inner: Undo
    packed: list[Packed] = field(repr=False)

    def restore(self) -> None:
        """Put every old tensor back, then every packed module."""
        self.inner.restore()
        for module in self.packed:
            module.put_back()

    def release(self) -> None:
        """Forget the old weights."""
        self.inner.release()
        self.packed.clear()


def merge(model: nn.Module, adapter: Adapter, proposal: Proposal, spec: UnpackSpec) -> MergeReport:
    """Exchange packed weights for plain ones and merge exactly; see `mgk_core.hookspecs.mgk_merge`.

    :raises MergeError: refused; the model is bit-identical to before
    """
    if proposal.transforms:
        raise MergeError(
            f"the rule {spec.type!r} merges a whole or scaled delta; expected no transform of it, got"
            f" {', '.join(t.name for t in proposal.transforms)}: leave covariance-merge out of a quantized base's first phase"
        )
    packed = [Packed.of(n, m) for n, m in model.named_modules() if is_packed(m)]
    if not packed:  # a later phase, in full precision
        return evolve(merge_by(model, adapter, proposal, "exact"), rule=spec.type)
    undo: list[Packed] = []
    try:
        distances = _exchange(model, packed, spec, undo)
        report = merge_by(model, adapter, proposal, "exact")
    except BaseException:
        for module in undo:
            module.put_back()
        raise
    return evolve(
        report,
        rule=spec.type,
        # int8 rounds activations too: its live outputs are those of no weight, so nothing can equal them.
        exact=spec.type == "dequantized" and not any(_rounds_inputs(p) for p in packed),
        warnings=(*report.warnings, *_told(distances, spec, packed)),
        undo=None if report.undo is None else UnpackUndo(report.undo, packed),
    )


@torch.no_grad()
def _exchange(model: nn.Module, packed: list[Packed], spec: UnpackSpec, undo: list[Packed]) -> dict[str, float]:
    """Fill every module; return ‖W − Q(W)‖ / ‖W‖ by weight name where the originals are at hand."""
    originals: Mapping[str, Tensor] = {}
    if spec.type == "original":
        read = sources.get(model)
        if read is None:
            raise MergeError("the rule 'original' needs the source of the quantized base, and this model names none")
        originals = read()
    distances = {}
    for module in packed:
        name = f"{module.name}.weight"
        weight = dequantize(module.module)
        if originals:
            if name not in originals or originals[name].shape != weight.shape:
                raise MergeError(f"{name}: the base's source has no such weight; expected one of {tuple(weight.shape)}")
            own = originals[name].float()
            distances[name] = float((own - weight).norm() / own.norm())
            weight = own
        undo.append(module)
        module.fill(weight)
    return distances


def _rounds_inputs(packed: Packed) -> bool:
    return getattr(packed.weight, "quant_state", None) is None


def _told(distances: Mapping[str, float], spec: UnpackSpec, packed: list[Packed]) -> tuple[str, ...]:
    if spec.type == "original":
        mean = sum(distances.values()) / len(distances)
        told = (
            f"merged into the original weights, which the adapter was not trained beside: ‖W − Q(W)‖ / ‖W‖ is"
            f" {mean:.3g} on average, at most {max(distances.values()):.3g}; not exact"
        )
        return (told,)
    if any(_rounds_inputs(p) for p in packed):
        return ("the int8 base rounded activations, so merged was not held against live; not exact",)
    return ()
