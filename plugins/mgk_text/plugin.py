"""The hooks of mgk_text."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mgk_core.contract.hookspecs import hookimpl
from mgk_text.specs import SPECS, AutoSpec, McqSpec, TextDataSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgk_core.contract.bundle import Bundle, LanguageBundle, PhaseData, Probe, Score
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.outcome import LossTerm
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Register the kinds of text data, and ``auto``, which recognises them."""
    registry.add("data", "auto", AutoSpec)
    for name, spec in SPECS.items():
        registry.add("data", name, spec)
    registry.add_metric(
        "generation", "answers that the model generates, judged one by one"
    )


@hookimpl
def mgk_load_data(spec: TextDataSpec, bundle: Bundle) -> PhaseData:
    """Read, check, tokenise and pack a phase's data."""
    from mgk_text.load import load

    return load(spec, bundle)


@hookimpl
def mgk_loss_terms(ctx: PhaseContext) -> Mapping[str, LossTerm] | None:
    """Contrast a question's options where the data ask for it."""
    spec = ctx.phase.data
    if not isinstance(spec, McqSpec) or not spec.contrast:
        return None
    from mgk_text.contrast import contrast_term

    return {"contrast": contrast_term(ctx, spec)}


@hookimpl
def mgk_evaluate(ctx: PhaseContext, probe: Probe) -> Score:
    """Judge answers that the model generates."""
    from mgk_text.generation import evaluate

    return evaluate(cast("LanguageBundle", ctx.bundle), probe)
