"""drift-guard as a loss term: every layer's penalty, layers of one shape in one batched product."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import define, field, frozen
from torch import Tensor

from mgk_core.adapter import Adapter, Target
from mgk_core.context import PhaseContext
from mgk_core.outcome import LossTerm
from mgk_retention.deltas import Pair, base_weight, dense_delta, matrices, pair_of
from mgk_retention.kept import INPUTS, OUTPUTS, Past
from mgk_retention.moments import Moment, Sketch, stacked
from mgk_retention.penalty import energy, normalised, penalty
from mgk_retention.specs import DriftGuardSpec


@frozen(eq=False)
class Guarded:
    """One weight and what holds it: C (in), Ĝ (out), and λ t / tr(Ĝ W C Wᵀ)."""

    name: str
    target: Target
    c: Moment
    g: Moment
    weight: Tensor


@frozen(eq=False)
class Stack:
    """Layers of one shape: their factors are stacked anew each step, all else once a phase."""

    pairs: Callable[[], Sequence[Pair]]
    c: Moment
    g: Moment
    weight: Tensor  # (L,), scale² included

    def __call__(self) -> Tensor:
        """Return the layers' penalties summed, ()."""
        found = self.pairs()
        a = torch.stack([p.a for p in found]).float()
        b = torch.stack([p.b for p in found]).float()
        return penalty(a, b, self.c, self.g, self.weight)


@define(eq=False)
class Guard:
    """The loss term. unguarded: targets of which no earlier phase left statistics."""

    stacks: list[Stack] = field(factory=list)
    dense: list[Guarded] = field(factory=list)
    unguarded: list[str] = field(factory=list)
    adapter: Adapter | None = None

    def __call__(self, step: int) -> Tensor:
        """Return λ · Σ over layers of D(ΔW), ()."""
        assert self.adapter is not None  # noqa: S101 - made with one
        terms = [stack() for stack in self.stacks]
        terms += [energy(g.c, g.g, dense_delta(self.adapter, g.name, g.target)) * g.weight for g in self.dense]
        return torch.stack(terms).sum()


def make_guard(ctx: PhaseContext, past: Past, spec: DriftGuardSpec) -> Guard:
    """Prepare everything that does not change during a phase."""
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made
    guard = Guard(adapter=adapter)
    groups: dict[tuple[object, ...], list[Guarded]] = {}
    for name, target in matrices(adapter).items():
        guarded = _guarded(name, target, past, spec)
        pair = pair_of(adapter, name)
        if guarded is None:
            guard.unguarded.append(name)
        elif pair is None:
            guard.dense.append(guarded)
        else:
            groups.setdefault((pair.a.shape, pair.b.shape, _form(guarded.c), _form(guarded.g)), []).append(guarded)
    guard.stacks = [_stack(adapter, members) for members in groups.values()]
    return guard


def _guarded(name: str, target: Target, past: Past, spec: DriftGuardSpec) -> Guarded | None:
    c = past.total(INPUTS, name, spec.sketch, spec.tail)
    g = past.total(OUTPUTS, name, spec.sketch, spec.tail)
    if c is None or g is None:
        return None
    g = normalised(g, spec.identity)
    reference = energy(c, g, base_weight(target)) / len(past.moments(INPUTS, name))
    # A layer whose outputs were all zero has nothing to be relative to.
    weight = torch.where(reference > 0, spec.strength / reference.clamp(min=torch.finfo(reference.dtype).tiny), 0.0)
    return Guarded(name, target, c, g, weight)


def _form(moment: Moment) -> object:
    return moment.factor.shape[-1] if isinstance(moment, Sketch) else "dense"


def _stack(adapter: Adapter, members: Sequence[Guarded]) -> Stack:
    def pairs() -> list[Pair]:
        return [p for m in members if (p := pair_of(adapter, m.name)) is not None]

    scales = torch.tensor([p.scale for p in pairs()], device=members[0].weight.device)
    return Stack(
        pairs,
        stacked([m.c for m in members]),
        stacked([m.g for m in members]),
        torch.stack([m.weight for m in members]) * scales.square(),
    )


def guard_term(ctx: PhaseContext, past: Past, spec: DriftGuardSpec) -> LossTerm | None:
    """Return the term, and say in the phase's notes what it guards; None where nothing was kept."""
    guard = make_guard(ctx, past, spec)
    held = len(matrices(ctx.adapter)) - len(guard.unguarded) if ctx.adapter is not None else 0
    phases = ", ".join(name for name, _ in past.files) or "nothing"
    note = f"drift-guard: {held} of {held + len(guard.unguarded)} weights are held to what they did for: {phases}"
    if "base" not in [name for name, _ in past.files]:
        note += "; the base is unprotected: give the first phase calibration text"
    if note not in ctx.notes:
        ctx.notes.append(note)
    return guard if guard.stacks or guard.dense else None
