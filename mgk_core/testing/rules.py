"""The laws of merge rules."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, state_of
from mgk_core.contract.errors import MergeError, MgkError
from mgk_core.contract.outcome import MergeReport, Proposal
from mgk_core.contract.progress import track
from mgk_core.testing.history import same_bits, shake, snapshot
from mgk_core.testing.laws import Law, LawResult, broken, hold_all, law, require
from mgk_core.testing.reference import DenseAdapter, attach_dense
from mgk_core.testing.subject import base_of, distance, output, rounding_bound
from mgk_core.testing.zoo import Case, make

MergeBy = Callable[[nn.Module, Adapter, Proposal], MergeReport]


Change = Callable[[str, Tensor], Tensor]


@frozen(eq=False)
class Rule:
    """A merge rule under test, and the dtype of the weights it merges into.

    change: what the rule declares that it makes of a weight's delta; None: it merges it as it is.
    """

    merge: MergeBy
    dtype: torch.dtype = torch.float32
    proposal: Proposal = field(factory=Proposal)
    change: Change | None = None

    def declared(self, adapter: DenseAdapter, name: str, scale: float = 1.0) -> Tensor:
        """Return the delta of a weight as the rule declares to merge it, float64."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        delta = adapter.parts[name].get_parameter("delta").detach().to(wide)
        if self.change is not None:
            delta = self.change(name, delta.clone())
        return scale * delta.double()

    def ready(self) -> tuple[Case, DenseAdapter]:
        """Return a three-layer model with an adapter whose deltas are not zero."""
        case = make("linear", layers=3, seed=3, dtype=self.dtype)
        adapter = attach_dense(case.model, cls=Interrupting)
        shake(adapter)
        return case, adapter


class Interrupting(DenseAdapter):
    """An adapter that is interrupted when the weight named ``at`` is asked for."""

    at: str | None = None

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Raise at the weight chosen, as Ctrl-C in the middle of a merge would."""
        if name == self.at:
            raise KeyboardInterrupt
        return super().merged_weight(name, weight, rows)


def _same_as(
    before: tuple[dict[str, Tensor], dict[str, Tensor]], case: Case, when: str
) -> None:
    weights, residuals = before
    require(not (changed := same_bits(weights, case)), f"{when}, yet {changed} changed")
    now = state_of(case.model).residuals
    same = now.keys() == residuals.keys() and all(
        torch.equal(now[n], t) for n, t in residuals.items()
    )
    require(same, f"{when}, yet the residuals changed")


@law("the merged model equals the unmerged one")
def merged_is_live(rule: Rule) -> None:
    """Where the rule calls its merge exact, the merged model computes what the unmerged one did; Parameter objects stay."""
    case, adapter = rule.ready()
    live, objects = (
        output(case),
        {n: id(t.parameter) for n, t in adapter.targets().items()},
    )
    report = rule.merge(case.model, adapter, rule.proposal)
    with adapter.disabled():
        error, bound = (
            distance(output(case), live),
            rounding_bound(case, adapter.targets()),
        )
    require(
        not report.exact or error <= bound,
        f"merged differs from unmerged by {error:.3g}; at most {bound:.3g}",
    )
    require(
        {n: id(t.parameter) for n, t in adapter.targets().items()} == objects,
        "a Parameter object was replaced",
    )


@law("scale and refusal are honoured")
def proposal_counts(rule: Rule) -> None:
    """Half the scale merges half the delta; a proposal that refuses raises `MergeError` and changes nothing."""
    case, adapter = rule.ready()
    before = base_of(case)
    rule.merge(case.model, adapter, Proposal(scale=0.5))
    for name, target in adapter.targets().items():
        weight = before[0][name].double()
        half = weight + rule.declared(adapter, name, 0.5)
        error = (target.parameter.detach().double() - half).abs().max().item()
        bound = 4 * torch.finfo(rule.dtype).eps * half.abs().max().item()
        require(
            error <= bound,
            f"scale 0.5: {name} is off by {error:.3g}; at most {bound:.3g}",
        )
    case, adapter = rule.ready()
    before = base_of(case)
    _refused(
        rule,
        case,
        adapter,
        Proposal(refuse="refused by the conformance tests"),
        "a proposal that refuses",
    )
    _same_as(before, case, "refused")


def _refused(
    rule: Rule, case: Case, adapter: Adapter, proposal: Proposal, what: str
) -> None:
    try:
        rule.merge(case.model, adapter, proposal)
    except MergeError:
        return
    broken(f"{what} was merged")


@law("all or nothing")
def all_or_nothing(rule: Rule) -> None:
    """NaN, inf or an interrupt at any one weight: the merge raises, and the model is bit-identical to before."""
    for place in rule.ready()[1].targets():
        for bad in (math.nan, math.inf):
            case, adapter = rule.ready()
            with torch.no_grad():
                adapter.parts[place].get_parameter("delta").view(-1)[-1] = bad
            before = base_of(case)
            _refused(rule, case, adapter, rule.proposal, f"{bad} in {place}")
            _same_as(before, case, f"{bad} in {place} was refused")
        case, adapter = rule.ready()
        adapter.at = place  # type: ignore[attr-defined]
        before = base_of(case)
        try:
            rule.merge(case.model, adapter, rule.proposal)
        except KeyboardInterrupt:
            _same_as(before, case, f"interrupted at {place}")
        else:
            broken(f"an interrupt at {place} was swallowed")


@law("the merge is what it declares")
def as_declared(rule: Rule) -> None:
    """Each weight changes by the declared delta and one rounding, as reported; no other weight changes.

    A rule that calls its merge not exact declares what it makes of a delta (`DeltaSpec.change`, or
    `MergeReport.change` of a rule that merges by itself).
    """
    case, adapter = rule.ready()
    before = base_of(case)[0]
    report = rule.merge(case.model, adapter, rule.proposal)
    named = {w.name: w for w in report.weights}
    now = snapshot(case)
    silent = [
        n for n, t in before.items() if n not in named and not torch.equal(t, now[n])
    ]
    require(not silent, f"it changed {silent}, which the report does not name")
    if rule.change is None and not report.exact:
        if report.change is None:
            broken("it calls its merge not exact, and declares no change of the delta")
        rule = evolve(rule, change=report.change)
    for name, weight in named.items():
        declared, old = rule.declared(adapter, name), before[name].double()
        change = now[name].double() - old
        size = max(float(old.abs().max()), float((old + declared).abs().max()))
        bound = 2 * torch.finfo(rule.dtype).eps * size
        error = float((change - declared).abs().max())
        require(
            error <= bound,
            f"{name} is off the declared by {error:.3g}; at most {bound:.3g}",
        )
        norm = float(declared.norm())
        off = abs(weight.delta_norm - norm)
        require(
            off <= 1e-3 * norm,
            f"{name}: norm {weight.delta_norm:.4g} reported, {norm:.4g} merged",
        )


@law("undo works once, and frees what it held")
def undo_in_full(rule: Rule) -> None:
    """A second restore, or one after release, raises and changes nothing; release may be repeated; no file is left."""
    for kept in ("memory", "disk"):
        for end in ("restore", "release"):
            with tempfile.TemporaryDirectory() as folder:
                _end_twice(
                    rule,
                    "disk" if kept == "disk" else "memory",
                    end,
                    Path(folder) / "undo",
                )


def _end_twice(
    rule: Rule, kept: Literal["memory", "disk"], end: str, spool: Path
) -> None:
    case, adapter = rule.ready()
    undo = rule.merge(case.model, adapter, Proposal(undo=kept, spool=str(spool))).undo
    if undo is None:
        broken(f"undo={kept}: the report has no undo")
    getattr(undo, end)()
    left = list(spool.iterdir()) if spool.is_dir() else []
    require(
        not left, f"undo={kept}: after {end}() there is still {[p.name for p in left]}"
    )
    before = base_of(case)
    undo.release()  # harmless, also after either
    try:
        undo.restore()
    except MgkError:
        _same_as(before, case, f"undo={kept}: restore after {end} was refused")
    else:
        broken(f"undo={kept}: restore() after {end}() did not raise")


@law("rollback is bit-exact")
def rollback(rule: Rule) -> None:
    """``report.undo.restore()`` restores every tensor and residual, bit for bit, from memory and from disk, also after a second merge."""
    for undo in ("memory", "disk"):
        case, first = rule.ready()
        rule.merge(case.model, first, rule.proposal)
        first.detach()
        state_of(case.model).adapters.clear()
        adapter = attach_dense(case.model, "second")
        shake(adapter, seed=1)
        before = base_of(case)
        report = rule.merge(
            case.model, adapter, Proposal(undo="disk" if undo == "disk" else "memory")
        )
        require(same_bits(before[0], case), f"undo={undo}: the merge changed nothing")
        if report.undo is None:
            broken(f"undo={undo}: the report has no undo")
        report.undo.restore()
        _same_as(before, case, f"undo={undo}: restored")
        rule.merge(case.model, adapter, rule.proposal)  # and it can be merged again


@law("a delta of zero is refused")
def zero_delta(rule: Rule) -> None:
    """A merge that would change nothing raises `MergeError`: something was forgotten."""
    case = make("linear", layers=3, seed=3, dtype=rule.dtype)
    before = snapshot(case)
    _refused(rule, case, attach_dense(case.model), rule.proposal, "a delta of zero")
    require(not (changed := same_bits(before, case)), f"refused, yet {changed} changed")


@law("merging twice is refused")
def twice(rule: Rule) -> None:
    """An adapter that is merged already, or that is not on this model, raises `MergeError` and changes nothing."""
    case, adapter = rule.ready()
    rule.merge(case.model, adapter, rule.proposal)
    before = base_of(case)
    _refused(rule, case, adapter, rule.proposal, "an adapter that is merged already")
    _same_as(before, case, "the second merge was refused")
    case, adapter = rule.ready()
    adapter.detach()
    state_of(case.model).adapters.clear()
    before = base_of(case)
    _refused(rule, case, adapter, rule.proposal, "an adapter that is detached")
    _same_as(before, case, "a detached adapter was refused")


LAWS: tuple[Law[Rule], ...] = (
    merged_is_live, as_declared, proposal_counts, all_or_nothing, rollback, undo_in_full, zero_delta, twice,
)  # fmt: skip


def check_rule(
    merge: MergeBy, named: str = "rule", *, change: Change | None = None
) -> list[LawResult]:
    """Run every test on a merge rule, on weights in fp32, bf16 and float64.

    :param change: (weight, delta) → the delta that the rule merges instead, if it changes deltas
    """
    results: list[LawResult] = []
    for dtype in track((torch.float32, torch.bfloat16, torch.float64), "dtypes"):
        where = f"{named} on {str(dtype).removeprefix('torch.')}"
        results += hold_all(LAWS, Rule(merge, dtype, change=change), where)
    return results
