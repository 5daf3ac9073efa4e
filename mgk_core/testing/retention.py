"""Conformance tests of what retention methods and loss terms do inside a phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Tensor

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import LossTerm
from mgk_core.contract.specs import Spec
from mgk_core.testing.laws import Law, LawResult, NotApplicable, hold_all, law, require
from mgk_core.testing.small_run import same_weights, small_phase, weights_of, without

Collect = Callable[[PhaseContext], Mapping[str, Tensor] | None]
Terms = Callable[[PhaseContext], Mapping[str, LossTerm] | None]


@frozen(eq=False)
class Method:
    """A retention method under test: its two hooks, its spec, and whether it declares old data."""

    collect: Collect
    terms: Terms
    spec: Spec
    keeps_examples: bool = False

    def phase(self) -> PhaseContext:
        """Return a second phase that names the method, with the statistics of what came before."""
        return small_phase(
            "retention", [self.spec], collect=lambda ctx: dict(self.collect(ctx) or {})
        )

    def statistics(self) -> dict[str, Tensor]:
        """Return what it keeps of a phase; `NotApplicable` where that is nothing."""
        ctx = small_phase("retention", [self.spec])
        kept = self.collect(ctx)
        if not kept:
            raise NotApplicable("it keeps no statistics")
        return dict(kept)

    def found_terms(self) -> tuple[PhaseContext, dict[str, LossTerm]]:
        """Return a phase and its loss terms; `NotApplicable` where there is none."""
        ctx = self.phase()
        terms = dict(self.terms(ctx) or {})
        if not terms:
            raise NotApplicable("it adds no loss term")
        return ctx, terms


@law("statistics are plain, finite and the same twice")
def statistics(method: Method) -> None:
    """What is kept of a phase are finite tensors by name, bit-equal twice; the model stays as it is."""
    one = method.statistics()
    for name, tensor in one.items():
        require(
            isinstance(name, str) and isinstance(tensor, Tensor),
            f"{name!r} is not a tensor",
        )
        require(bool(torch.isfinite(tensor).all()), f"{name} is not finite")
        require(not tensor.requires_grad, f"{name} carries gradients")
    two = method.statistics()
    same = one.keys() == two.keys() and all(
        torch.equal(t, two[n]) for n, t in one.items()
    )
    require(same, "the statistics of the same phase differ the second time")
    ctx = small_phase("retention", [method.spec])
    before = weights_of(ctx.bundle)
    method.collect(ctx)
    require(same_weights(before, ctx.bundle), "collecting statistics changed a weight")


@law("old examples are kept only if declared")
def old_data(method: Method) -> None:
    """The statistics hold no training example, unless the plugin lists the type in MGK_KEEPS_EXAMPLES."""
    kept = method.statistics()
    if method.keeps_examples:
        raise NotApplicable("it declares that it keeps examples")
    ctx = small_phase("retention", [method.spec])
    assert ctx.data is not None  # noqa: S101 - `small_phase` makes it
    examples = [e.ids for e in ctx.data.train.batch(range(len(ctx.data.train)))]
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            continue
        flat = ",".join(map(str, tensor.flatten().tolist()))
        found = [e for e in examples if ",".join(map(str, e)) in flat]
        require(not found, f"{name} holds {len(found)} training examples")


@law("a term is a pure function of the adapter")
def pure_term(method: Method) -> None:
    """A loss term is a finite 0-dim tensor, the same twice for one step, and changes no weight."""
    ctx, terms = method.found_terms()
    before = weights_of(ctx.bundle)
    for name, term in terms.items():
        one, two = term(3), term(3)
        require(
            isinstance(one, Tensor) and one.dim() == 0,
            f"term {name!r} is not a 0-dim tensor",
        )
        require(bool(torch.isfinite(one)), f"term {name!r} is {one.item()}")
        require(
            torch.equal(one, two),
            f"term {name!r}: first {one.item()!r}, then {two.item()!r}",
        )
    require(same_weights(before, ctx.bundle), "a loss term changed a weight")


@law("a term trains the adapter alone")
def adapters_gradient(method: Method) -> None:
    """A loss term depends on the adapter's parameters and on no other weight."""
    ctx, terms = method.found_terms()
    assert ctx.adapter is not None  # noqa: S101 - `small_phase` makes it
    own = {id(p) for p in ctx.adapter.parameters()}
    rest = [p for p in ctx.model.parameters() if id(p) not in own]
    for name, term in terms.items():
        value = term(0)
        if not value.requires_grad:
            continue  # a term may be constant at this point
        value.backward()  # type: ignore[no-untyped-call]
        require(
            not any(p.grad is not None for p in rest), f"term {name!r} trains the base"
        )
        ctx.model.zero_grad(set_to_none=True)


@law("a phase that does not name it is untouched")
def off(method: Method) -> None:
    """In a run without the method it keeps no statistics and adds no loss term."""
    ctx = without(method.phase(), "retention")
    require(
        not method.collect(ctx), "it keeps statistics in a run that does not name it"
    )
    require(
        not method.terms(ctx), "it adds a loss term to a phase that does not name it"
    )


LAWS: tuple[Law[Method], ...] = (
    statistics,
    old_data,
    pure_term,
    adapters_gradient,
    off,
)


def check_retention(
    collect: Collect,
    terms: Terms,
    spec: Spec,
    named: str = "retention",
    *,
    keeps_examples: bool = False,
) -> list[LawResult]:
    """Run every test on a retention method or a loss term.

    :param collect, terms: as ``mgk_collect_statistics`` and ``mgk_loss_terms``
    :param keeps_examples: whether it declares that it keeps training examples (replay)
    """
    return hold_all(LAWS, Method(collect, terms, spec, keeps_examples), named)
