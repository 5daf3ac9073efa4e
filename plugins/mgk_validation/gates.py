"""The gates: what a row of scores must satisfy for a transition to commit.

Every comparison is written so that NaN refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from attrs import frozen

from mgk_core.contract.bundle import Probe, Score
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import Refusal, Verdict
from mgk_validation.compare import Change
from mgk_validation.specs import (
    GateSpec,
    KeepBaseSpec,
    MaxDropSpec,
    MinGainSpec,
    ThresholdSpec,
)

Row = Mapping[str, Score]
DIVERGENCE = "kl_to_base"
"""A metric that is 0 on the base and can only grow: no drop from 0 is expected of it."""


@frozen
class Finding:
    """A gate's result for one probe; both are None if it passed without a remark."""

    refusal: Refusal | None = None
    note: str | None = None


def judge(ctx: PhaseContext, before: Sequence[Row], after: Row) -> Verdict | None:
    """Evaluate every gate of the phase; None if it has none."""
    specs = ctx.phase.of(GateSpec)
    if not specs:
        return None
    findings = [found for spec in specs for found in _ask(spec, ctx, before, after)]
    refusals = tuple(f.refusal for f in findings if f.refusal is not None)
    notes = tuple(f.note for f in findings if f.note is not None)
    return Verdict(accept=not refusals, refusals=refusals, notes=notes)


def _ask(
    spec: GateSpec, ctx: PhaseContext, before: Sequence[Row], after: Row
) -> list[Finding]:
    if isinstance(spec, MaxDropSpec):
        return [
            max_drop(spec, Change(_reference(spec, ctx, before, p), after[p.name]))
            for p in _taught(spec, ctx, after)
            if p.metric != DIVERGENCE or p.name in spec.probes
        ]
    if isinstance(spec, KeepBaseSpec):
        return [
            keep_base(spec, Change(before[0][p.name], after[p.name]))
            for p in _of(spec, ctx, after, "base")
        ]
    if isinstance(spec, MinGainSpec):
        own = _of(spec, ctx, after, ctx.phase.name)
        return [
            min_gain(spec, Change(_latest(before, p), after[p.name]), p.floor)
            for p in own
        ]
    if isinstance(spec, ThresholdSpec):
        return [threshold(spec, after[p.name]) for p in _taught(spec, ctx, after)]
    raise InputError(
        f"gate {spec.type!r}: {type(spec).__name__} is not a gate of this plugin"
    )


def max_drop(spec: MaxDropSpec, change: Change) -> Finding:
    """Refuse a drop beyond the tightest limit given, and beyond the noise."""
    limits = [] if spec.absolute is None else [spec.absolute]
    limits += (
        [] if spec.relative is None else [spec.relative * abs(change.before.value)]
    )
    limit, noise = min(limits, default=0.0), change.noise(spec.stderrs)
    allowed, drop = max(limit, noise), -change.gain
    note = _too_tight(spec, change, limit, noise) if limits and noise > limit else None
    if drop <= allowed:
        return Finding(note=note)
    reason = f"{change}: worse by {drop:.4g} than {_row(spec)}; at most {allowed:.4g} is allowed"
    return Finding(
        Refusal(
            spec.type,
            reason,
            change.after.probe,
            change.evidence(drop=drop, allowed=allowed),
        ),
        note,
    )


def keep_base(spec: KeepBaseSpec, change: Change) -> Finding:
    """Refuse if less than a share of the baseline is left and the drop is more than noise."""
    kept, noise, drop = share_kept(change), change.noise(spec.stderrs), -change.gain
    if kept >= spec.share:
        return Finding()
    if drop <= noise:
        note = f"{spec.type}: {change}: {kept:.1%} kept, below {spec.share:.1%}, but the drop of {drop:.4g} is noise (up to {noise:.4g})"
        return Finding(note=note)
    reason = f"{change}: keeps {kept:.1%} of the base's score; at least {spec.share:.1%} is required"
    return Finding(
        Refusal(
            spec.type,
            reason,
            change.after.probe,
            change.evidence(kept=kept, share=spec.share),
        )
    )


def share_kept(change: Change) -> float:
    """Return how much of a score is left: 1 is all of it, above 1 is a gain.

    Log-likelihoods (negative, higher is better): exp of the difference, the ratio of geometric mean
    probabilities, which for perplexities is before / after. A divergence from the base: exp of
    minus what it grew by. Otherwise the ratio of the two scores.
    """
    before, after = change.before.value, change.after.value
    if change.after.metric == DIVERGENCE:
        return math.exp(before - after)
    if not change.after.higher_is_better:
        before, after = after, before
    if before < 0 or after < 0:
        return math.exp(min(after - before, 700.0))
    if before == 0:
        return 1.0 if after == 0 else math.inf
    return after / before


def min_gain(spec: MinGainSpec, change: Change, floor: float | None) -> Finding:
    """Refuse a gain below the highest limit given; a note reports a limit within the noise."""
    before = change.before.value
    limits = [] if spec.absolute is None else [spec.absolute]
    limits += [] if spec.relative is None else [spec.relative * abs(before)]
    if spec.to_floor is not None:
        if floor is None:
            raise InputError(
                f"gate {spec.type!r}: probe {change.after.probe!r} has no known floor; use absolute or relative"
            )
        limits.append(spec.to_floor * abs(before - floor))
    wanted, noise = max([*limits, change.noise(spec.stderrs)]), change.noise(2.0)
    note = None
    if wanted < noise:
        note = f"{spec.type}: {change}: a gain of {wanted:.4g} is required, and up to {noise:.4g} is noise"
    if change.gain >= wanted:
        return Finding(note=note)
    reason = f"{change}: a gain of {change.gain:.4g}; at least {wanted:.4g} is required"
    return Finding(
        Refusal(spec.type, reason, change.after.probe, change.evidence(wanted=wanted)),
        note,
    )


def threshold(spec: ThresholdSpec, score: Score) -> Finding:
    """Refuse a score that is worse than the limit."""
    passed = (
        score.value >= spec.limit
        if score.higher_is_better
        else score.value <= spec.limit
    )
    if passed:
        return Finding()
    word = "at least" if score.higher_is_better else "at most"
    reason = f"{score.probe} ({score.metric}) is {score.value:.4g} ± {score.stderr:.2g}; {word} {spec.limit:.4g} is required"
    return Finding(
        Refusal(
            spec.type,
            reason,
            score.probe,
            {"after": score.value, "limit": spec.limit, "n": score.n},
        )
    )


def _too_tight(spec: MaxDropSpec, change: Change, limit: float, noise: float) -> str:
    return (
        f"{spec.type}: {change.after.probe}: the limit of {limit:.4g} is tighter than the noise;"
        f" {noise:.4g} ({spec.stderrs:g} standard errors at n = {change.after.n}) was allowed instead"
    )


def _row(spec: MaxDropSpec) -> str:
    return "in the best row so far" if spec.against == "best" else "in the previous row"


def _reference(
    spec: MaxDropSpec, ctx: PhaseContext, before: Sequence[Row], probe: Probe
) -> Score:
    """Return the score to compare with: the previous one, or the best since the probe was taught."""
    if spec.against == "previous" or probe.phase == ctx.phase.name:
        return _latest(before, probe)
    names = [p.name for p in ctx.config.phases]
    first = 0 if probe.phase == "base" else names.index(probe.phase) + 1
    rows = [row[probe.name] for row in before[first:] if probe.name in row]
    rows = rows or [_latest(before, probe)]
    best = rows[0]
    for score in rows[1:]:
        best = score if score.better_by(best) > 0 else best
    return best


def _latest(before: Sequence[Row], probe: Probe) -> Score:
    """Return a probe's score in the last row that has it: some are measured at the ends only."""
    return next(row[probe.name] for row in reversed(before) if probe.name in row)


def _taught(spec: GateSpec, ctx: PhaseContext, after: Row) -> list[Probe]:
    """Return the probes of the base, of earlier phases and of this one."""
    names = [p.name for p in ctx.config.phases]
    return _of(spec, ctx, after, "base", *names[: ctx.index + 1])


def _of(spec: GateSpec, ctx: PhaseContext, after: Row, *phases: str) -> list[Probe]:
    """Return the measured probes of some phases that match the gate's globs; none is an error."""
    known = {p.name: p for p in ctx.probes if p.name in after and p.phase in phases}
    found = [
        p
        for name, p in known.items()
        if any(fnmatchcase(name, glob) for glob in spec.probes)
    ]
    if not found:
        has = ", ".join(known) or "none"
        raise InputError(
            f"phase {ctx.phase.name!r}, gate {spec.type!r}: no probe to check: probes = {list(spec.probes)},"
            f" measured probes of {' and '.join(phases)}: {has}; a gate without probes would accept anything"
        )
    return found
