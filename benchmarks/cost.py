"""What work costs as it grows: tokens, vocabulary, layers, phases; time and memory per unit.

    OMP_NUM_THREADS=1 python benchmarks/cost.py [--sweeps tokens vocabulary layers phases] [--out FILE]

A training step of a small Gemma 3 with LoRA on all linear layers, by number of tokens (sequences of 128), size of
the vocabulary, and layers; and runs of the reference network with so many phases, a probe in each of which every
later phase measures. Time is the CPU time of one thread, the fastest of several steps; memory is the most bytes of
tensors that a step holds at once, or the run directory's size. Both are divided by what grows, so that a
flat line means: twice the work costs twice as much.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import mgk
from mgk_core.contract.bundle import Tokens
from mgk_core.contract.pipeline import Phase
from mgk_core.model.speeds import fastest
from mgk_core.tools.footprint import peak_of
from mgk_hf.bundle import HfBundle
from mgk_hf.cpu.calibrate import with_screen
from mgk_hf.network import take_apart
from mgk_hf.tiny import tiny_model, tiny_tokenizer
from mgk_phases.textmodel import PIPELINE

SWEEPS = {
    "tokens": (128, 512, 2048, 8192),
    "vocabulary": (32768, 65536, 131072, 262144),
    "layers": (2, 4, 8, 16),
    "phases": (3, 10, 30, 100),
}
SEQUENCE = 128
USUAL = {"tokens": 256, "vocabulary": 4096, "layers": 2}
WIDTH = {"hidden_size": 128, "intermediate_size": 512}


def step(tokens, vocabulary, layers):
    """Return (CPU seconds, peak bytes of tensors) of one training step."""
    tokenizer = tiny_tokenizer(("혈압", "heart"), 300)
    kinds = ["sliding_attention", "full_attention"] * (layers // 2)
    model = tiny_model(vocabulary, num_hidden_layers=layers, layer_types=kinds, **WIDTH)
    model.eval().requires_grad_(requires_grad=False)
    network = with_screen(take_apart(model), tokenizer, "auto")
    bundle = HfBundle(network, tokenizer, torch.device("cpu"))
    adapter = mgk.attach(model, "lora", rank=8, alpha=16, targets=["all-linear"])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    ids = [i * 7 % (vocabulary - 9) + 5 for i in range(SEQUENCE)]
    rows = [Tokens(tuple(ids), tuple(ids))] * (tokens // SEQUENCE)
    batch = bundle.pack(rows)

    def once():
        total, count = bundle.loss(batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    once()
    return fastest(once), peak_of(once)


def run_of(phases):
    """Return (CPU seconds, bytes of the run directory) of a run with so many phases, each of ten steps."""
    one = PIPELINE.phases[0]
    many = [
        Phase(
            name=f"p{i}", title="", optimizer=one.optimizer, data={**one.data, "seed": i, "probe": f"p{i}", "items": 32},
            train={"steps": 10, "batch_size": 16},
        )
        for i in range(phases)
    ]  # fmt: skip
    pipeline = mgk.Pipeline(
        name="many", title="", base=PIPELINE.base, phases=tuple(many), run=PIPELINE.run,
        defaults={**PIPELINE.defaults, "gate": {"min-gain": False}},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        mgk.run(pipeline, out=Path(folder) / "run")
        spent = time.process_time() - before
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return spent, size


def measure(sweep, amount):
    """Return one point of a sweep."""
    if sweep == "phases":
        seconds, held = run_of(amount)
    else:
        seconds, held = step(**{**USUAL, sweep: amount})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"sweep": sweep, "amount": amount, "seconds": seconds, "bytes": held, "rss_kb": peak}  # fmt: skip


def rows(points):
    """Yield lines of the table in docs/benchmarks.md."""
    for point in points:
        first = next(p for p in points if p["sweep"] == point["sweep"])
        times, memory = (
            (point[k] / point["amount"]) / (first[k] / first["amount"])
            for k in ("seconds", "bytes")
        )
        yield (
            f"| {point['sweep']} | {point['amount']} | {1e3 * point['seconds'] / point['amount']:.3g} ms |"
            f" {point['bytes'] / point['amount'] / 1e3:.3g} kB | {times:.2f} | {memory:.2f} |"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--most", type=int, help="leave out what is larger")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.point:
        sweep, amount = arguments.point
        print(json.dumps(measure(sweep, int(amount))))
        return
    points = []
    for sweep in arguments.sweeps:
        for amount in SWEEPS[sweep]:
            if arguments.most and amount > arguments.most:
                continue
            # Each in a process of its own: what one leaves in the allocator is not another's.
            command = [sys.executable, __file__, "--point", sweep, str(amount)]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            points.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(list(rows(points))[-1], flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(points, indent=1))


if __name__ == "__main__":
    main()
