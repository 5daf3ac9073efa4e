"""What comparing a base's digest costs: seconds per comparison, and as a share of a phase.

    python benchmarks/digest_cost.py            # 270 million bf16 weights, shaped like Gemma 3 270M
    python benchmarks/digest_cost.py --layers 2 # a small one

A phase compares `POINTS` times (`mgk_core.run.frozen_weights`), and once more for each checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from mgk_core.model.digest import tensor_digests

POINTS = 7  # attach, training, proposal, merge, scores, gates and statistics, exit
HIDDEN, INNER, HEADS, KEYS, VOCABULARY = 640, 2048, 1024, 256, 262_144


def state(layers: int) -> dict[str, Tensor]:
    """Return random weights with the shapes of Gemma 3 270M (18 layers), bf16."""
    shapes = (
        {"embed_tokens": (VOCABULARY, HIDDEN)}
        if layers >= 18
        else {"embed_tokens": (4096, HIDDEN)}
    )
    for i in range(layers):
        shapes |= {
            f"{i}.q_proj": (HEADS, HIDDEN),
            f"{i}.k_proj": (KEYS, HIDDEN),
            f"{i}.v_proj": (KEYS, HIDDEN),
            f"{i}.o_proj": (HIDDEN, HEADS),
            f"{i}.gate_proj": (INNER, HIDDEN),
            f"{i}.up_proj": (INNER, HIDDEN),
            f"{i}.down_proj": (HIDDEN, INNER),
        }
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(s, generator=generator).to(torch.bfloat16)
        for n, s in shapes.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    tensors = state(arguments.layers)
    seconds = []
    for _ in range(arguments.repeat):
        began = time.perf_counter()
        tensor_digests(tensors)
        seconds.append(time.perf_counter() - began)
    size = sum(t.nbytes for t in tensors.values())
    one = statistics.median(seconds)
    print(f"{size / 2**20:,.0f} MiB, {torch.get_num_threads()} threads")
    print(f"one comparison: {one:.3f} s ({size / 2**30 / one:.2f} GiB/s)")
    print(f"{POINTS} of them, as in one phase: {POINTS * one:.2f} s")


if __name__ == "__main__":
    main()
