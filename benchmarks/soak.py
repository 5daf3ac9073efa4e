"""A soak: a hundred short phases in one run. Memory, open files and the time of a step must stay flat.

    python benchmarks/soak.py [--phases 100] [--steps 200]

Prints one JSON object: per figure the slope per phase with its standard error (least squares over the phases after
the first tenth, which warm caches up), and the bytes on disk against what ``mgk plan`` had estimated. A step's time is the
least of a phase's lines in CPU seconds, over that of a fixed matrix product timed at the same moment, since what else
the machine does slows both.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from mgk_core.config.resolve import load_tree
from mgk_core.contract.pipeline import Phase, Pipeline
from mgk_core.run.runner import run_pipeline
from mgk_core.run.setup import prepare
from mgk_core.tools.plan import make_plan

BATCH = 16
LINE = 10  # steps to a line of the log


def pipeline(phases: int, steps: int) -> Pipeline:
    """Declare that many phases, each with data of its own; one probe in all, so that a row stays as wide as it is."""

    def phase(i: int) -> Phase:
        data: dict[str, Any] = {
            "type": "teacher",
            "seed": i + 1,
            "size": 320,
            "items": 16,
            "probe": f"p{i}",
        }
        return Phase(
            name=f"p{i:03d}",
            data=data,
            evaluate={"limit": 4},
            train={"steps": steps, "batch_size": BATCH, "log_every": LINE},
        )

    defaults = {
        "adapter": {
            "type": "lora",
            "rank": 4,
            "alpha": 8,
            "targets": ["layer1", "layer2"],
        },
        "optimizer": {"type": "sgd", "lr": 1e-4},
        "retention": {"drift-guard": {"sketch": 8, "max_tokens": 64}},
    }
    return Pipeline(
        "soak",
        {"type": "reference"},
        tuple(map(phase, range(phases))),
        defaults,
        {"threads": 1},
    )


def slope(values: list[float]) -> dict[str, float]:
    """Least squares over the index: mean, slope, the slope's standard error, and whether it rises by no more
    than two of them, or by less than 5 % in all."""
    n = len(values)
    x = [i - (n - 1) / 2 for i in range(n)]
    mean, spread = sum(values) / n, sum(v * v for v in x)
    rise = sum(a * b for a, b in zip(x, values, strict=True)) / spread
    rest = sum((v - mean - rise * a) ** 2 for a, v in zip(x, values, strict=True))
    error = math.sqrt(rest / max(1, n - 2) / spread)
    return {
        "mean": mean,
        "slope": rise,
        "standard_error": error,
        "flat": abs(rise) <= 2 * error or abs(rise) * n < 0.05 * mean,
    }


def yardstick() -> float:
    """CPU seconds of fixed work that a step's time is compared with: the least of nine tries."""
    a, b = torch.ones(16, 128), torch.ones(128, 128)
    tries = []
    for _ in range(9):
        began = time.process_time()
        for _ in range(100):
            torch.mm(a, b)
        tries.append((time.process_time() - began) / 100)
    return min(tries)


def on_disk(folder: Path) -> int:
    """Return the bytes of all files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phases", type=int, default=100)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    process = psutil.Process()
    figures: dict[str, list[float]] = {
        "rss_bytes": [],
        "open_files": [],
        "step_in_yardsticks": [],
    }
    seconds: list[float] = []
    steps: list[float] = []

    last = [0.0]

    def sink(event: Any) -> None:
        now = time.process_time()
        if event["event"] == "step":
            steps.append((now - last[0]) / LINE)
        last[0] = now
        if event["event"] == "step":
            return
        if event["event"] == "phase" and event["state"] == "exit":
            figures["rss_bytes"].append(float(process.memory_info().rss))
            figures["open_files"].append(float(process.num_fds()))
            seconds.append(min(steps))
            figures["step_in_yardsticks"].append(min(steps) / yardstick())
            steps.clear()

    declared = pipeline(given.phases, given.steps)
    planned = make_plan(prepare(load_tree(declared)))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_pipeline(declared, out=Path(folder) / "run", sink=sink)
        written = on_disk(Path(folder) / "run")
    skip = given.phases // 10
    found = {k: slope(v[skip:]) for k, v in figures.items()}
    bounds = {
        "disk_bytes": written,
        "disk_planned_bytes": planned.disk,
        "disk_bounded": written <= planned.disk,
    }
    print(
        json.dumps(
            {
                "phases": given.phases,
                "seconds": round(time.perf_counter() - began, 1),
                "step_cpu_seconds": median(seconds),
                **found,
                **bounds,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
