"""The hooks of mgk_harness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.errors import EnvironmentFault
from mgk_core.contract.hookspecs import hookimpl
from mgk_harness.specs import HarnessSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgk_core.contract.bundle import Bundle, Probe, Score
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.specs import SpecRegistry

FAMILY = "lm-eval"


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Register the probe type, and the metrics of all tasks as one family."""
    registry.add("probe", FAMILY, HarnessSpec)
    registry.add_metric(f"{FAMILY}:*", "a metric of a task of lm-evaluation-harness")


@hookimpl
def mgk_load_probes(spec: HarnessSpec, name: str, bundle: Bundle) -> Sequence[Probe]:
    """Load the task, its documents and requests; the harness is imported here and not before."""
    try:
        from mgk_harness.tasks import load
    except ImportError as error:
        raise EnvironmentFault(
            f"probes.{name}: type 'lm-eval' needs {error.name}: pip install 'mgk[lm-eval]'"
        ) from error
    return [load(spec, name, bundle)]


@hookimpl
def mgk_evaluate(ctx: PhaseContext, probe: Probe) -> Score:
    """Let the harness evaluate the task on the model in its present state."""
    from mgk_harness.evaluation import evaluate

    return evaluate(ctx.bundle, probe)
