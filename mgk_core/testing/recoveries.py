"""Conformance tests of recoveries: they end, go one way, and report what they did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import attrs
from attrs import frozen

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import Recovery, Refusal
from mgk_core.contract.specs import Spec
from mgk_core.testing.laws import (
    Law,
    LawResult,
    NotApplicable,
    broken,
    hold_all,
    law,
    require,
)
from mgk_core.testing.small_run import small_phase

Recover = Callable[
    [PhaseContext, Sequence[Refusal], Sequence[Recovery], Spec], Recovery | None
]

MOST = 32
"""Offers after which a recovery is taken to be endless."""
REFUSALS = (Refusal("kit", "worse by 1", "kit-early", {"drop": 1.0}),)


@frozen(eq=False)
class Asked:
    """A recovery under test."""

    recover: Recover
    spec: Spec

    def offers(self) -> list[Recovery]:
        """Ask until it has nothing more to offer, each offer refused; at most `MOST` times."""
        ctx = small_phase("recover", [self.spec])
        tried: list[Recovery] = []
        while len(tried) < MOST:
            found = self.recover(ctx, REFUSALS, tuple(tried), self.spec)
            if found is None:
                return tried
            tried.append(found)
            if found.action in ("stop", "keep_apart"):
                return tried
            if found.proposal is not None:
                ctx.proposal = found.proposal
        return tried

    def some(self) -> list[Recovery]:
        """Return its offers; `NotApplicable` where there is none."""
        found = self.offers()
        if not found:
            raise NotApplicable("it offers nothing after the kit's refusal")
        return found


@law("it ends")
def ends(asked: Asked) -> None:
    """Refused again and again, it stops offering: a run always comes to an end."""
    count = len(asked.some())
    require(count < MOST, f"it still offers something after {MOST} refusals")


@law("an offer is complete")
def complete(asked: Asked) -> None:
    """Each offer names its method, and has the proposal or the steps that its action needs."""
    for offer in asked.some():
        require(
            offer.method == asked.spec.type,
            f"an offer names the method {offer.method!r}, not {asked.spec.type!r}",
        )
        if offer.action == "propose":
            require(offer.proposal is not None, "action 'propose' without a proposal")
        if offer.action == "train":
            require(offer.steps >= 1, f"action 'train' for {offer.steps} steps")


@law("offers go one way")
def monotone(asked: Asked) -> None:
    """Proposed scales never grow, and no proposal comes twice."""
    scales: list[float] = []
    for offer in asked.some():
        if offer.action != "propose" or offer.proposal is None:
            continue
        scale = offer.proposal.scale
        if scales and scale > scales[-1]:
            broken(f"scale {scale:g} is offered after {scales[-1]:g}")
        scales.append(scale)
        again = scales.count(scale) > 1 and not offer.proposal.transforms
        require(not again, f"scale {scale:g} is offered twice")


@law("evidence is JSON")
def evidence(asked: Asked) -> None:
    """What an offer gives as evidence can be written to the ledger."""
    for offer in asked.some():
        try:
            json.dumps(dict(offer.evidence), allow_nan=False)
        except (TypeError, ValueError) as error:
            broken(f"the evidence {dict(offer.evidence)!r} is not JSON: {error}")


@law("the same offers twice")
def pure(asked: Asked) -> None:
    """Asked again from the beginning it makes the same offers: it keeps no state of its own."""

    def plain(offer: Recovery) -> tuple[object, ...]:
        scale = offer.proposal.scale if offer.proposal else None
        return (
            offer.action,
            scale,
            offer.steps,
            str(attrs.asdict(offer, recurse=False)["evidence"]),
        )

    one, two = [plain(o) for o in asked.some()], [plain(o) for o in asked.offers()]
    require(one == two, f"first {one}, then {two}")


LAWS: tuple[Law[Asked], ...] = (ends, complete, monotone, evidence, pure)


def check_recovery(
    recover: Recover, spec: Spec, named: str = "recovery"
) -> list[LawResult]:
    """Run every test on a recovery. recover: as ``mgk_recover``; spec: the entry that is asked."""
    return hold_all(LAWS, Asked(recover, spec), named)
