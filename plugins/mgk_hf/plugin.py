"""Hugging Face causal language models as bases (base type ``hf``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.contract.specs import SpecRegistry
from mgk_hf.specs import HfSpec, UnpackSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mgk_core.contract.adapter import Adapter
    from mgk_core.contract.bundle import Bundle
    from mgk_core.contract.context import PhaseContext
    from mgk_core.contract.outcome import MergeReport, Proposal


@hookimpl
def mgk_register_specs(registry: SpecRegistry) -> None:
    """Register the base type, and merge rules for quantized bases."""
    registry.add("base", "hf", HfSpec)
    registry.add("merge", "dequantized", UnpackSpec)
    registry.add("merge", "original", UnpackSpec)


@hookimpl
def mgk_phase_enter(ctx: PhaseContext) -> None:
    """Refuse, before the first step, to requantize a base that is not quantized."""
    spec = ctx.phase.merge
    if not isinstance(spec, UnpackSpec) or not spec.requantize:
        return
    from mgk_hf.quantized import is_quantized

    if not is_quantized(ctx.model):
        raise InputError(
            f"phases.{ctx.phase.name}.merge.requantize needs a quantized base, and no weight of this phase's base is quantized:"
            " set base.quantize, leave requantize on in the phases before, or leave it out here"
        )


@hookimpl
def mgk_merge(
    model: nn.Module, adapter: Adapter, proposal: Proposal, spec: UnpackSpec
) -> MergeReport:
    """Merge what was trained on packed weights into full-precision ones."""
    from mgk_hf.unpack import merge

    return merge(model, adapter, proposal, spec)


@hookimpl
def mgk_build_model(spec: HfSpec, device: torch.device) -> Bundle:
    """Load the base; transformers is imported here and not before."""
    try:
        from mgk_hf.loading import build
    except ImportError as error:
        raise EnvironmentFault(
            f"base type 'hf' needs {error.name}: pip install 'mgk[hf]'"
        ) from error
    return build(spec, device)
