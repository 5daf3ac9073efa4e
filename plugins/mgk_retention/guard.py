"""drift-guard as a loss term: every layer's penalty, layers of one shape in one batched product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from mgk_core.contract.adapter import Adapter, Target
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_retention.deltas import (
    Pair,
    base_weight,
    dense_delta,
    live_pairs,
    matrices,
    pair_of,
)
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
    """Layers of one shape, so that one batched product serves all of them."""

    names: tuple[str, ...]
    c: Moment
    g: Moment
    weight: Tensor  # (L,), scale² included

    def __call__(
        self, a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return value and gradients, see `penalty`."""
        return penalty(_together(a), _together(b), self.c, self.g, self.weight)


def _together(tensors: Sequence[Tensor]) -> Tensor:
    return (
        tensors[0][None] if len(tensors) == 1 else torch.stack(tuple(tensors))
    ).float()


class Penalties(torch.autograd.Function):
    """All stacks' penalties as one node of the graph, its gradients made with the value."""

    @staticmethod
    def forward(ctx: Any, stacks: Sequence[Stack], *factors: Tensor) -> Tensor:
        """factors: a and b of every layer in turn, stack by stack. Returns ()."""
        value = factors[0].new_zeros((), dtype=torch.float32)
        gradients: list[Tensor] = []
        for stack in stacks:
            start, stop = len(gradients), len(gradients) + 2 * len(stack.names)
            found, of_a, of_b = stack(
                factors[start:stop:2], factors[start + 1 : stop : 2]
            )
            value = value + found
            for one, other in zip(of_a.unbind(), of_b.unbind(), strict=True):
                gradients += [one, other]
        ctx.gradients = [g.to(f.dtype) for g, f in zip(gradients, factors, strict=True)]
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that forward made."""
        return (None, *torch._foreach_mul(ctx.gradients, grads[0]))  # noqa: SLF001 - public in all but name


@define(eq=False)
class Guard:
    """The loss term. pair: a weight's live factors; unguarded: targets of which nothing is known."""

    adapter: Adapter
    pair: Callable[[str], Pair]
    stacks: list[Stack] = field(factory=list)
    dense: list[Guarded] = field(factory=list)
    unguarded: list[str] = field(factory=list)

    def __call__(self, step: int) -> Tensor:
        """Return λ · Σ over layers of D(ΔW), ()."""
        terms = [
            energy(g.c, g.g, dense_delta(self.adapter, g.name, g.target)) * g.weight
            for g in self.dense
        ]
        if self.stacks:
            pairs = [self.pair(name) for stack in self.stacks for name in stack.names]
            factors = [factor for pair in pairs for factor in (pair.a, pair.b)]
            apply: Any = Penalties.apply  # torch leaves it untyped
            terms.append(apply(self.stacks, *factors))
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum()


def make_guard(ctx: PhaseContext, past: Past, spec: DriftGuardSpec) -> Guard:
    """Prepare everything that does not change during a phase."""
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made
    guard = Guard(adapter, live_pairs(adapter))
    groups: dict[tuple[object, ...], list[Guarded]] = {}
    for name, target in matrices(adapter).items():
        guarded = _guarded(name, target, past, spec)
        pair = pair_of(adapter, name)
        if guarded is None:
            guard.unguarded.append(name)
        elif pair is None:
            guard.dense.append(guarded)
        else:
            held = evolve(guarded, weight=guarded.weight * pair.scale**2)
            groups.setdefault(
                (pair.a.shape, pair.b.shape, _form(held.c), _form(held.g)), []
            ).append(held)
    guard.stacks = [_stack(members) for members in groups.values()]
    return guard


def _guarded(
    name: str, target: Target, past: Past, spec: DriftGuardSpec
) -> Guarded | None:
    c = past.total(INPUTS, name, spec.sketch, spec.tail)
    g = past.total(OUTPUTS, name, spec.sketch, spec.tail)
    if c is None or g is None:
        return None
    g = normalised(g, spec.identity)
    reference = energy(c, g, base_weight(target)) / len(past.moments(INPUTS, name))
    # A layer whose outputs were all zero has nothing to be relative to.
    weight = torch.where(
        reference > 0,
        spec.strength / reference.clamp(min=torch.finfo(reference.dtype).tiny),
        0.0,
    )
    return Guarded(name, target, c, g, weight)


def _form(moment: Moment) -> object:
    return moment.factor.shape[-1] if isinstance(moment, Sketch) else "dense"


def _stack(members: Sequence[Guarded]) -> Stack:
    return Stack(
        tuple(m.name for m in members),
        stacked([m.c for m in members]),
        stacked([m.g for m in members]),
        torch.stack([m.weight for m in members]),
    )


def guard_term(ctx: PhaseContext, past: Past, spec: DriftGuardSpec) -> LossTerm | None:
    """Return the term, and state in the phase's notes what it guards; None where nothing was kept."""
    guard = make_guard(ctx, past, spec)
    held = (
        len(matrices(ctx.adapter)) - len(guard.unguarded)
        if ctx.adapter is not None
        else 0
    )
    phases = ", ".join(name for name, _ in past.files) or "nothing"
    note = f"drift-guard: {held} of {held + len(guard.unguarded)} weights keep what they did for: {phases}"
    if "base" not in [name for name, _ in past.files]:
        note += "; the base is unprotected: give the first phase calibration text"
    if note not in ctx.notes:
        ctx.notes.append(note)
    return guard if guard.stacks or guard.dense else None
