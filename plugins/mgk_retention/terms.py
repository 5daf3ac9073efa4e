"""All loss terms of a phase, in the order in which its methods are declared."""

from __future__ import annotations

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_retention.guard import guard_term
from mgk_retention.kept import Past
from mgk_retention.orthogonal import ewc_term, olora_term
from mgk_retention.replay import distil_term, replay_term
from mgk_retention.specs import (
    DistilSpec,
    DriftGuardSpec,
    EwcSpec,
    MethodSpec,
    OloraSpec,
    ReplaySpec,
)


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
    if isinstance(spec, DriftGuardSpec):
        return guard_term(ctx, past, spec)
    if isinstance(spec, ReplaySpec):
        return replay_term(ctx, past, spec)
    if isinstance(spec, DistilSpec):
        return distil_term(ctx, past, spec)
    if isinstance(spec, EwcSpec):
        return ewc_term(ctx, past, spec)
    if isinstance(spec, OloraSpec):
        return olora_term(ctx, past, spec)
    return None


def _free(name: str, taken: dict[str, LossTerm]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free
