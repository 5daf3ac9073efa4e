"""The hooks of mgk_validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_validation import specs

if TYPE_CHECKING:
    from mgk_core.contract.bundle import Probe, Score
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.outcome import Recovery, Verdict
    from mgk_core.contract.specs import Spec, SpecRegistry

MGK_CHECK = {"gate:min-gain": {"to_floor": 0.3}, "gate:threshold": {"limit": 4.5}}
"""Settings for the conformance tests; the other types have defaults that refuse something."""

METRICS = {
    "squared_error": "mean squared error of the outputs",
    "perplexity": "exponential of the mean loss per token",
    "option_logprob": "log-likelihood of the right option, per token",
    "option_margin": "the right option's log-likelihood per token minus that of the best wrong one",
    "option_accuracy": "share of items whose right option is the likeliest",
    "option_calibration": "expected calibration error of the options' probabilities",
}


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Answer for the gates, the recoveries, and metrics by loss or log-likelihood."""
    registry.add("gate", "max-drop", specs.MaxDropSpec)
    registry.add("gate", "min-gain", specs.MinGainSpec)
    registry.add("gate", "keep-base", specs.KeepBaseSpec)
    registry.add("gate", "threshold", specs.ThresholdSpec)
    registry.add("recover", "scale-search", specs.ScaleSearchSpec)
    registry.add("recover", "train-on", specs.TrainOnSpec)
    registry.add("recover", "keep-apart", specs.KeepApartSpec)
    registry.add("recover", "stop", specs.StopSpec)
    for name, summary in METRICS.items():
        registry.add_metric(name, summary)


@hookimpl
def mgk_evaluate(ctx: PhaseContext, probe: Probe) -> Score:
    """Measure squared error, perplexity, and questions with options."""
    from mgk_validation import losses, options

    if probe.metric == "squared_error":
        return losses.squared_error(ctx.bundle, probe)
    if probe.metric == "perplexity":
        return losses.perplexity(ctx.bundle, probe)
    return options.option_metric(ctx.bundle, probe)


@hookimpl
def mgk_gate(
    ctx: PhaseContext, before: Sequence[Mapping[str, Score]], after: Mapping[str, Score]
) -> Verdict | None:
    """Evaluate the gates of the phase."""
    from mgk_validation.gates import judge

    return judge(ctx, before, after)


@hookimpl
def mgk_recover(
    ctx: PhaseContext, tried: Sequence[Recovery], spec: Spec
) -> Recovery | None:
    """Propose a smaller merge, more training, keeping the adapter apart, or to stop."""
    from mgk_validation.recoveries import recover

    return recover(ctx, tried, spec)
