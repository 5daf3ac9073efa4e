"""What to try after a refusal. Each entry of the phase's ``recover`` is asked in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mgk_core.context import PhaseContext
from mgk_core.outcome import Proposal, Recovery
from mgk_core.specs import Spec
from mgk_validation.specs import KeepApartSpec, ScaleSearchSpec, StopSpec, TrainOnSpec


def recover(ctx: PhaseContext, tried: Sequence[Recovery], spec: Spec) -> Recovery | None:
    """Return what this entry has to offer next, or None where it has nothing (more)."""
    before = [r for r in tried if r.method == spec.type]
    if isinstance(spec, ScaleSearchSpec):
        return _next_scale(ctx, before, spec)
    if isinstance(spec, TrainOnSpec):
        added = tuple({"type": name, **options} for name, options in spec.retention.items())
        return Recovery("train", spec.type, steps=spec.steps, retention=added) if len(before) < spec.times else None
    if isinstance(spec, KeepApartSpec):
        return None if before else Recovery("keep_apart", spec.type)
    if isinstance(spec, StopSpec):
        return Recovery("stop", spec.type)
    return None


def _next_scale(ctx: PhaseContext, before: Sequence[Recovery], spec: ScaleSearchSpec) -> Recovery | None:
    """Offer the first scale not tried yet."""
    if len(before) >= len(spec.scales):
        return None
    scale = spec.scales[len(before)]
    undo: Literal["memory", "disk"] = "disk" if ctx.config.run.undo == "disk" else "memory"
    return Recovery("propose", spec.type, proposal=Proposal(scale=scale, undo=undo), evidence={"scale": scale})
