"""All loss terms of a phase, in the order in which its methods are declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_retention.clora import clora_term
from mgk_retention.ella import ella_term
from mgk_retention.guard import guard_term
from mgk_retention.kept import Past
from mgk_retention.orthogonal import ewc_term, olora_term
from mgk_retention.replay import distil_term, replay_term
from mgk_retention.specs import (
    CloraSpec,
    DistilSpec,
    DriftGuardSpec,
    EllaSpec,
    EwcSpec,
    MethodSpec,
    OloraSpec,
    ReplaySpec,
)

MAKERS: dict[type[MethodSpec], Callable[[PhaseContext, Past, Any], LossTerm | None]] = {
    DriftGuardSpec: guard_term,
    ReplaySpec: replay_term,
    DistilSpec: distil_term,
    EwcSpec: ewc_term,
    OloraSpec: olora_term,
    EllaSpec: ella_term,
    CloraSpec: clora_term,
}
"""Which function makes a method's term. Methods that act elsewhere are not in it."""


def loss_terms(ctx: PhaseContext) -> dict[str, LossTerm]:
    """Return name → term; a method that finds nothing to protect gives none, and a note records it."""
    past = Past(ctx.history, ctx.device)
    terms: dict[str, LossTerm] = {}
    for spec in ctx.specs(MethodSpec):
        term = _term(ctx, past, spec)
        if term is not None:
            terms[_free(spec.type, terms)] = term
        elif isinstance(spec, (DriftGuardSpec, ReplaySpec, EwcSpec)):
            note = f"{spec.type}: nothing is known of the base or of an earlier phase yet; it does nothing in this one"
            if note not in ctx.notes:
                ctx.notes.append(note)
    return terms


def _term(ctx: PhaseContext, past: Past, spec: MethodSpec) -> LossTerm | None:
    for kind, make in MAKERS.items():
        if isinstance(spec, kind):
            return make(ctx, past, spec)
    return None


def _free(name: str, taken: dict[str, LossTerm]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
