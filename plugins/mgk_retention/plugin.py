"""The hooks of mgk_retention."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from mgk_core.contract.hookspecs import hookimpl
from mgk_retention import specs

if TYPE_CHECKING:
    from torch import Tensor

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.bundle import Bundle, PhaseData
    from mgk_core.contract.context import Observer, PhaseContext
    from mgk_core.contract.outcome import LossTerm, Proposal, Recovery
    from mgk_core.contract.specs import SpecRegistry


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Claim the retention methods, the recovery ``covariance``, the observer ``alarm`` and the data ``mixed``."""
    for name, cls in specs.RETENTION.items():
        registry.add("retention", name, cls)
    registry.add("recover", "covariance", specs.CovarianceRecoverySpec)
    registry.add("observe", "alarm", specs.AlarmSpec)
    registry.add("data", "mixed", specs.MixedSpec)


@hookimpl
def mgk_load_data(spec: specs.MixedSpec, bundle: Bundle) -> PhaseData:
    """Load the parts of ``mixed``."""
    from mgk_retention.mixed import load

    return load(spec, bundle)


@hookimpl
def mgk_phase_enter(ctx: PhaseContext) -> None:
    """Label a phase without protection."""
    if ctx.specs(specs.NaiveSpec):
        ctx.notes.append("naive: no protection against forgetting")


@hookimpl
def mgk_init_adapter(adapter: Adapter, ctx: PhaseContext) -> None:
    """Design A where the phase asks for it."""
    for spec in ctx.specs(specs.DesignedSpec):
        from mgk_retention.designed import design

        done = design(adapter, ctx, spec)
        ctx.notes.append(
            f"designed-a: A of {len(done)} weights chosen from new and old inputs"
        )


@hookimpl
def mgk_loss_terms(ctx: PhaseContext) -> Mapping[str, LossTerm]:
    """Offer one term for each method that the phase names; several of one type are numbered."""
    from mgk_retention.terms import loss_terms

    return loss_terms(ctx)


@hookimpl
def mgk_observers(ctx: PhaseContext) -> Sequence[Observer]:
    """Watch drift where the phase asks for it."""
    from mgk_retention.alarm import make_alarm

    return [make_alarm(ctx, spec, ctx.tell) for spec in ctx.specs(specs.AlarmSpec)]


@hookimpl
def mgk_collect_statistics(ctx: PhaseContext) -> Mapping[str, Tensor]:
    """Collect what later phases need to know."""
    from mgk_retention.collect import collect

    return collect(ctx)


@hookimpl(wrapper=True)
def mgk_propose_merge(
    ctx: PhaseContext,
) -> Generator[None, list[Proposal], list[Proposal]]:
    """Add the transforms of methods that act at the transition to what is proposed."""
    from mgk_core.contract.outcome import Proposal

    proposals = yield
    for spec in ctx.specs(specs.CovarianceSpec):
        if isinstance(spec, specs.CovarianceRecoverySpec):
            continue
        from mgk_retention.covariance import with_transform

        last = proposals[-1] if proposals else Proposal()
        proposals = [*proposals[:-1], with_transform(ctx, last, spec)]
    for merge in ctx.specs(specs.LedgerMergeSpec):
        from mgk_retention.ledger_merge import with_ledger_merge

        last = proposals[-1] if proposals else Proposal()
        proposals = [*proposals[:-1], with_ledger_merge(ctx, last, merge)]
    for projection in ctx.specs(specs.OpcmSpec):
        from mgk_retention.opcm import with_opcm

        last = proposals[-1] if proposals else Proposal()
        proposals = [*proposals[:-1], with_opcm(ctx, last, projection)]
    for repair in ctx.specs(specs.IntruderSpec):
        from mgk_retention.intruder import with_repair

        last = proposals[-1] if proposals else Proposal()
        proposals = [*proposals[:-1], with_repair(ctx, last, repair)]
    return proposals


@hookimpl
def mgk_recover(
    ctx: PhaseContext, tried: Sequence[Recovery], spec: specs.CovarianceRecoverySpec
) -> Recovery | None:
    """Offer the covariance-aware merge after a refusal."""
    from mgk_retention.covariance import recovery

    return recovery(ctx, tried, spec)
