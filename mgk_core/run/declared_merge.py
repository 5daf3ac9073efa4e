"""What a merge rule did, against what it declares: computed from the weights of before.

mgk's own engine is tested and trusted. Where a plugin merges, its report is only a claim: the
weights are compared with the adapter's deltas, changed as the report declares.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, Target, state_of
from mgk_core.contract.outcome import MergeReport, Proposal
from mgk_core.model.lowrank import as_matrix


@frozen(eq=False)
class BeforeMerge:
    """The targets' weights and residuals as they were before a merge."""

    weights: dict[str, Tensor]
    residuals: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, adapter: Adapter) -> BeforeMerge:
        """Copy what a merge of ``adapter`` may write to; packed weights are left out."""
        targets = adapter.targets().items()
        plain = {
            n: t.parameter.detach()
            for n, t in targets
            if t.parameter.is_floating_point()
        }
        residuals = state_of(model).residuals
        return cls(
            {n: w.clone() for n, w in plain.items()},
            {n: residuals[n].clone() for n in plain if n in residuals},
        )

    @torch.no_grad()
    def problem(
        self, adapter: Adapter, proposal: Proposal, report: MergeReport
    ) -> str | None:
        """Return how the merged weights differ from what the report declares; None where they don't."""
        if not report.exact and report.change is None:
            return (
                "calls its merge not exact and declares no change of the delta: register a DeltaSpec,"
                " or give MergeReport.change"
            )
        reported = {weight.name for weight in report.weights}
        for name, target in adapter.targets().items():
            if name not in self.weights:
                continue
            expected = self._expected(adapter, target, proposal, report)
            now = target.parameter.detach().to(expected.dtype)
            size = float(expected.abs().max())
            bound = (
                2
                * (
                    torch.finfo(target.parameter.dtype).eps
                    + torch.finfo(expected.dtype).eps
                )
                * size
            )
            error = float((now - expected).abs().max())
            if not error <= bound:
                declared = (
                    "the adapter's delta"
                    if report.exact
                    else "the delta as the rule declares to change it"
                )
                return (
                    f"{name} differs by {error:.3g} from the old weight and {declared}; at most {bound:.3g}"
                    " is rounding"
                )
            if name not in reported and not torch.equal(
                target.parameter, self.weights[name]
            ):
                return f"{name} was changed, and the report has no WeightReport of it"
        return None

    def _expected(
        self, adapter: Adapter, target: Target, proposal: Proposal, report: MergeReport
    ) -> Tensor:
        """Return what a weight must be, before it is rounded. (out, in) as stored."""
        name, stored = target.weight, self.weights[target.weight]
        wide = stored.to(torch.promote_types(stored.dtype, torch.float32))
        delta = adapter.merged_weight(name, wide.clone()).to(wide.dtype) - wide
        if wide.dim() > 1:
            matrix = as_matrix(delta, target)
            for transform in proposal.transforms:
                matrix.copy_(transform.delta(name, matrix.clone(), None))
            if not report.exact and report.change is not None:
                matrix.copy_(report.change(name, matrix.clone()))
        expected = wide + proposal.scale * delta
        residual = self.residuals.get(name)
        return expected if residual is None else expected + residual.to(expected)


__all__ = ["BeforeMerge"]
