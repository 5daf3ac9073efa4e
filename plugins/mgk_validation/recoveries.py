"""What to try after a refusal. The entries of the phase's ``recover`` are tried in order."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import Proposal, Recovery
from mgk_core.contract.specs import Spec
from mgk_validation.specs import KeepApartSpec, ScaleSearchSpec, StopSpec, TrainOnSpec


def recover(
    ctx: PhaseContext, tried: Sequence[Recovery], spec: Spec
) -> Recovery | None:
    """Return what this entry tries next, or None if it has nothing left to try."""
    before = [r for r in tried if r.method == spec.type]
    if isinstance(spec, ScaleSearchSpec):
        return _next_scale(ctx, before, spec)
    if isinstance(spec, TrainOnSpec):
        if len(before) >= spec.times:
            return None
        # As in the phase's own table: true is a method with its defaults, false removes it.
        tables = {
            name: {} if options is True else options
            for name, options in spec.retention.items()
        }
        added = tuple(
            {"type": name, **options}
            for name, options in tables.items()
            if options is not False
        )
        return Recovery("train", spec.type, steps=spec.steps, retention=added)
    if isinstance(spec, KeepApartSpec):
        return None if before else Recovery("keep_apart", spec.type)
    if isinstance(spec, StopSpec):
        return Recovery("stop", spec.type)
    return None


def _next_scale(
    ctx: PhaseContext, before: Sequence[Recovery], spec: ScaleSearchSpec
) -> Recovery | None:
    """Propose the last proposal, with its transforms, at the first scale not tried yet.

    The evidence holds ``proposed``, the scale of the proposal that the search began with.
    """
    if len(before) >= len(spec.scales):
        return None
    last = ctx.proposal or Proposal()
    proposed = float(before[0].evidence["proposed"]) if before else last.scale
    scale = proposed * spec.scales[len(before)]
    return Recovery(
        "propose",
        spec.type,
        proposal=evolve(last, scale=scale),
        evidence={"scale": scale, "proposed": proposed},
    )
