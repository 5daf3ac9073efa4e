"""The suite ``korean``: the shipped Korean pipeline on its real base, once for each method and seed.

The pipeline is found by its name and run by mgk itself, in a temporary run directory: with the
method's ``retention``, without gates, recoveries and generated answers, so that every method ends
with the same phases. Scores are nats per token on the test split, more is better.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

import mgk
from mgk_bench.grid import unordered
from mgk_bench.methods import KOREAN, Method, chosen
from mgk_core.contract.pipeline import Phase, Pipeline

PIPELINE = "korean-medical"
BOUNDARY = ("statistics", "merge")
"""Parts of a run, beside training, that a method may make dearer: with them verification and commit are counted."""


@frozen
class Cut:
    """What is other than in the pipeline: base, steps of each phase, most items of a probe, a phase's data.

    None: as the pipeline has it; but of items None means all, also where the pipeline scores fewer. data:
    phase → keys laid over its data.
    """

    base: str | None = None
    steps: int | None = None
    items: int | None = None
    data: Mapping[str, Mapping[str, Any]] = field(factory=dict)


@frozen
class KoreanCell:
    """One method with one seed.

    taught: probe → the row after which it was taught; None for the base's own. rows: probe → nats
    per token, the baseline first. accuracy: the same, of questions. n: items of each probe. paired: differences
    on the same items, as in retention.json. cpu: part of the run → CPU seconds of the process.
    """

    method: str
    seed: int
    taught: Mapping[str, int | None]
    rows: tuple[Mapping[str, float], ...]
    accuracy: tuple[Mapping[str, float], ...]
    n: Mapping[str, int]
    cpu: Mapping[str, float]
    kept_bytes: int
    model_bytes: int
    paired: tuple[Mapping[str, Any], ...] = ()


@define
class PartClock:
    """A sink that gives the CPU seconds between two parts of a run to the part that came first."""

    spent: dict[str, float] = field(factory=dict)
    _part: str = "load"
    _since: float = field(factory=time.process_time)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        if event["event"] in ("part", "time"):
            now = time.process_time()
            self.spent[self._part] = self.spent.get(self._part, 0.0) + now - self._since
            self._part, self._since = str(event.get("part", "end")), now


def run_suite(
    methods: Sequence[str],
    seeds: Sequence[int],
    tell: Callable[[str], None],
    cut: Cut = Cut(),
    workers: int = 1,
) -> list[KoreanCell]:
    """Run every method with every seed, in so many processes, which share the CPUs between them.

    :raises InputError: an unknown method
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    wanted = chosen(tuple(methods), KOREAN)
    jobs = [(method, seed, cut, threads) for seed in seeds for method in wanted]
    began, found = time.perf_counter(), {}
    for (method, seed, *_), cell in unordered(run_job, jobs, workers):
        found[method.name, seed] = cell
        tell(
            f"{method.name}, seed {seed}: {len(found)} of {len(jobs)} done, {time.perf_counter() - began:.0f} s"
        )
    return [found[method.name, seed] for method in wanted for seed in seeds]


def run_job(job: tuple[Method, int, Cut, int]) -> KoreanCell:
    """Run one cell, in a process of its own where there are several."""
    method, seed, cut, threads = job
    return run_cell(method, seed, cut, threads=threads)


def run_cell(
    method: Method, seed: int, cut: Cut = Cut(), *, threads: int = 0
) -> KoreanCell:
    """Run the pipeline once and read what it measured. threads: 0 for all CPUs."""
    clock = PartClock()
    with tempfile.TemporaryDirectory(prefix="mgk-bench-") as folder:
        out = Path(folder) / "run"
        result = mgk.run(
            pipeline_of(method, cut),
            out=out,
            set={"run.seed": seed, "run.threads": threads},
            sink=clock,
        )
        kept = sum(p.stat().st_size for p in out.rglob("statistics.safetensors"))
        model = sum(p.stat().st_size for p in (out / "model").glob("*.safetensors"))
    return read_cell(
        method.name, seed, result.retention, dict(clock.spent), (kept, model)
    )


def pipeline_of(method: Method, cut: Cut) -> Pipeline:
    """Return the pipeline as the method runs it."""
    found = mgk.pipeline(PIPELINE)
    defaults = {
        **found.defaults,
        "gate": {},
        "recover": {},
        "evaluate": {"limit": cut.items},
    }
    if method.retention:
        defaults["retention"] = method.retention
    usual = float(found.defaults["optimizer"]["lr"])
    rate = usual if method.lr is None else method.lr
    defaults["optimizer"] = {**found.defaults["optimizer"], "lr": rate}
    if method.adapter:
        targets = found.defaults["adapter"]["targets"]
        defaults["adapter"] = {"targets": targets, **method.adapter}
    phases = tuple(_cut(phase, cut, rate / usual) for phase in found.phases)
    if method.kind == "joint":
        phases = (_joint(phases),)
    options = found.base if cut.base is None else {**found.base, "id": cut.base}
    return evolve(
        found, name=f"bench-{PIPELINE}", base=options, phases=phases, defaults=defaults
    )


def _cut(phase: Phase, cut: Cut, slower: float) -> Phase:
    """Lay a cut over a phase; a learning rate of its own changes with that of the others."""
    data = {**phase.data, **cut.data.get(phase.name, {})}
    if "generate" in data:
        data["generate"] = 0
    train = phase.train if cut.steps is None else {**phase.train, "steps": cut.steps}
    optimizer = {k: v * slower if k == "lr" else v for k, v in phase.optimizer.items()}
    return evolve(phase, data=data, train=train, optimizer=optimizer)


def _joint(phases: Sequence[Phase]) -> Phase:
    """Return one phase whose steps are those of all phases in mixed order."""
    parts = {
        p.name: {
            "data": dict(p.data),
            "batch_size": p.train["batch_size"],
            "batches": p.train["steps"],
        }
        for p in phases
    }
    steps = sum(p.train["steps"] for p in phases)
    return Phase(
        "joint",
        data={"type": "mixed", "parts": parts},
        train={"steps": steps, "batch_size": 1},
    )


def read_cell(
    method: str,
    seed: int,
    retention: Mapping[str, Any],
    cpu: Mapping[str, float],
    sizes: tuple[int, int],
) -> KoreanCell:
    """Make a cell of what retention.json holds. Accuracies stay out: they are of another kind."""
    rows = [r["name"] for r in retention["rows"]]
    columns = [
        (j, p)
        for j, p in enumerate(retention["probes"])
        if p["metric"] in ("perplexity", "option_logprob")
    ]

    def nats(i: int, j: int, probe: Mapping[str, Any]) -> float:
        if probe["metric"] == "option_logprob":
            return float(retention["R"][i][j])
        return -float(retention["extra"][i][probe["name"]]["nll"])

    return KoreanCell(
        method=method,
        seed=seed,
        taught={
            p["name"]: None if p["phase"] == "base" else rows.index(p["phase"])
            for _, p in columns
        },
        rows=tuple(
            {p["name"]: nats(i, j, p) for j, p in columns} for i in range(len(rows))
        ),
        accuracy=tuple(
            {p: float(e["accuracy"]) for p, e in row.items() if "accuracy" in e}
            for row in retention["extra"]
        ),
        n={p["name"]: retention["n"][0][j] for j, p in columns},
        cpu=cpu,
        kept_bytes=sizes[0],
        model_bytes=sizes[1],
        paired=tuple(retention["paired"]),
    )
