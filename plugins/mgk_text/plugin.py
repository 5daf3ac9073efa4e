"""The hooks of mgk_text."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mgk_core.contract.hookspecs import hookimpl
from mgk_text.similarity import SUMMARIES
from mgk_text.specs import SPECS, AutoSpec, McqSpec, TextDataSpec, TextProbeSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mgk_core.contract.bundle import Bundle, LanguageBundle, PhaseData, Probe, Score
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.outcome import LossTerm
    from mgk_core.contract.specs import Spec, SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Register the kinds of text data, and ``auto``, which recognises them."""
    registry.add("data", "auto", AutoSpec)
    for name, spec in SPECS.items():
        registry.add("data", name, spec)
    registry.add_metric(
        "generation", "answers that the model generates, judged one by one"
    )
    registry.add("probe", "text", TextProbeSpec)
    for name, summary in SUMMARIES.items():
        registry.add_metric(name, summary)
    registry.add_metric(
        "kl_to_base", "KL divergence from the untouched base, nats per token"
    )


@hookimpl
def mgk_load_data(
    spec: TextDataSpec, bundle: Bundle, others: Sequence[Spec]
) -> PhaseData:
    """Read, check, tokenise and pack a phase's data."""
    from mgk_text.load import load

    return load(spec, bundle, others)


@hookimpl
def mgk_load_probes(spec: TextProbeSpec, name: str, bundle: Bundle) -> list[Probe]:
    """Read texts whose perplexity is measured."""
    from mgk_text.load import text_probe

    return [text_probe(spec, name, bundle)]


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
    """Judge answers that the model generates, or measure how far it is from the base."""
    if probe.metric == "kl_to_base":
        from mgk_text.divergence import divergence

        return divergence(cast("LanguageBundle", ctx.bundle), probe)
    from mgk_text.generation import evaluate

    return evaluate(cast("LanguageBundle", ctx.bundle), probe)
