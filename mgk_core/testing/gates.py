"""The laws of gates: pure, monotone, and a refusal names its evidence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from attrs import frozen

from mgk_core.contract.bundle import Bundle, Probe, Score
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.outcome import Refusal, Verdict
from mgk_core.contract.settings import PhaseConfig, RunConfig
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
from mgk_core.testing.probes import BigramBundle

Row = Mapping[str, Score]
Judge = Callable[[PhaseContext, Sequence[Row], Row], Verdict | None]

LEVELS = (-2.0, -0.5, -0.1, -0.01, 0.0, 0.01, 0.1, 0.5, 2.0)
"""By how much the row just measured is better than the one before, in the metrics' unit."""

PROBES = (
    Probe("kit-base", "base", "kit_gain", (0,), higher_is_better=True, floor=9.0),
    Probe("kit-base-loss", "base", "kit_loss", (0,), higher_is_better=False, floor=1.0),
    Probe("kit-early", "early", "kit_loss", (0,), higher_is_better=False, floor=1.0),
    Probe("kit-own", "now", "kit_loss", (0,), higher_is_better=False, floor=1.0),
)


@frozen(eq=False)
class Gate:
    """A gate under test: how it is asked, and the spec that the phase names."""

    judge: Judge
    spec: Spec

    def verdict(
        self, levels: Mapping[str, float], *, before: Sequence[Row] | None = None
    ) -> Verdict:
        """Ask about a row that is better by ``levels``, probe by probe (worse where negative)."""
        found = self.judge(context(self.spec), before or rows_before(), row(levels))
        if found is None:
            broken("it gives no verdict although the phase names it")
        return found


def context(spec: Spec, bundle: Bundle | None = None) -> PhaseContext:
    """Return the second of two phases, which names one gate, as passed to a gate or an evaluator."""
    none = Spec(type="kit")

    def phase(name: str) -> PhaseConfig:
        return PhaseConfig(
            name=name,
            data=none,
            adapter=none,
            optimizer=none,
            step=none,
            merge=none,
            gate=(spec,),
        )

    config = RunConfig(name="kit", base=none, phases=(phase("early"), phase("now")))
    return PhaseContext(
        config=config,
        phase=config.phases[1],
        index=1,
        bundle=bundle or BigramBundle(),
        device=torch.device("cpu"),
        directory=Path(),
        probes=PROBES,
        scores=tuple(rows_before()),
    )


def row(levels: Mapping[str, float], wobble: float = 0.02) -> dict[str, Score]:
    """Return a row of scores that are better by ``levels`` than 5; items differ, so that there is noise."""
    return {p.name: _score(p, levels.get(p.name, 0.0), wobble) for p in PROBES}


def rows_before() -> list[dict[str, Score]]:
    """Return the baseline and the row of the phase before."""
    return [row({}, 0.0), row({}, 0.0)]


def _score(probe: Probe, better: float, wobble: float) -> Score:
    value = 5.0 + better if probe.higher_is_better else 5.0 - better
    items = [
        value + d + wobble * (-1) ** i
        for i, d in enumerate((-0.3, -0.1, -0.1, 0.1, 0.1, 0.3, -0.2, 0.2))
    ]
    mean = math.fsum(items) / len(items)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in items) / (len(items) - 1))
    return Score(
        probe.name, probe.metric, mean, len(items), deviation / math.sqrt(len(items)), probe.higher_is_better,
        per_item=tuple(items),
    )  # fmt: skip


def _ladders() -> list[list[dict[str, float]]]:
    """Return ladders of rows from worse to better: all probes together, then each alone."""
    names = [p.name for p in PROBES]
    return [[dict.fromkeys(names, x) for x in LEVELS]] + [
        [{name: x} for x in LEVELS] for name in names
    ]


@law("a refusal names its evidence")
def evidence(gate: Gate) -> None:
    """Refused exactly where there are refusals; each names the gate, a probe that exists, a reason and figures."""
    refusals: list[Refusal] = []
    for levels in (x for ladder in _ladders() for x in ladder):
        verdict = gate.verdict(levels)
        require(
            verdict.accept == (not verdict.refusals),
            f"accept is {verdict.accept} with {len(verdict.refusals)} refusals",
        )
        refusals += verdict.refusals
    if not refusals:
        raise NotApplicable("it refused no row of the kit")
    for refusal in refusals:
        require(
            refusal.gate == gate.spec.type,
            f"a refusal names the gate {refusal.gate!r}, not {gate.spec.type!r}",
        )
        require(refusal.reason.strip(), "a refusal gives no reason")
        require(
            refusal.probe is None or refusal.probe in {p.name for p in PROBES},
            f"no probe is named {refusal.probe!r}",
        )
        require(
            any(isinstance(v, int | float) for v in refusal.evidence.values()),
            "a refusal's evidence holds no figure",
        )


@law("better is never refused")
def monotone(gate: Gate) -> None:
    """Where a row is accepted, one that is better on a probe and no worse on any other is accepted too."""
    for ladder in _ladders():
        accepted = None
        for levels in ladder:
            verdict = gate.verdict(levels)
            if verdict.accept:
                accepted = levels
            elif accepted is not None:
                broken(
                    f"better by {levels} is refused ({verdict.refusals[0].reason}), by {accepted} accepted"
                )


@law("the same answer twice")
def pure(gate: Gate) -> None:
    """The verdict depends on the rows alone, which stay as they are."""
    for levels in _ladders()[0]:
        before = rows_before()
        kept = copy.deepcopy(before)
        one, two = (
            gate.verdict(levels, before=before),
            gate.verdict(levels, before=before),
        )
        require(one == two, f"better by {levels}: first {one}, then {two}")
        require(before == kept, "the rows before were changed")


@law("NaN does not pass")
def not_a_number(gate: Gate) -> None:
    """A gate that refuses the worst row refuses one whose scores are NaN."""
    names = [p.name for p in PROBES]
    if gate.verdict(dict.fromkeys(names, LEVELS[0])).accept:
        raise NotApplicable("it accepts the worst row of the kit")
    require(
        not gate.verdict(dict.fromkeys(names, math.nan)).accept,
        "a row of NaN is accepted",
    )


LAWS: tuple[Law[Gate], ...] = (evidence, monotone, pure, not_a_number)


def check_gate(judge: Judge, spec: Spec, named: str = "gate") -> list[LawResult]:
    """Run the conformance tests on a gate. judge: as ``mgk_gate``; spec: what the phase names."""
    return hold_all(LAWS, Gate(judge, spec), named)
