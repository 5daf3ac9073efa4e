"""What drift-guard costs at a real model's shapes: one step's term, one phase's statistics, their bytes.

    python benchmarks/forgetting_cost.py [--sketch 64] [--rank 8] [--step 1.2]

Shapes are those of Gemma 3 270M's 126 linear layers; no model is needed, since the term's cost depends
on nothing else. ``--step``: seconds of a training step without the guard, to relate to. CPU seconds of
one thread, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mgk_retention.accumulate import make_accumulator
from mgk_retention.guard import Penalties, Stack
from mgk_retention.kept import INPUTS, packed
from mgk_retention.moments import Sketch, compressed, stacked
from mgk_retention.specs import DriftGuardSpec

LAYERS = 18
SHAPES = {
    "q_proj": (1024, 640), "k_proj": (256, 640), "v_proj": (256, 640), "o_proj": (640, 1024),
    "gate_proj": (2048, 640), "up_proj": (2048, 640), "down_proj": (640, 2048),
}  # fmt: skip
SHARED = (
    "k_proj",
    "v_proj",
    "up_proj",
)  # their inputs are those of q_proj and gate_proj


def cpu(run: Callable[[], object], times: int) -> float:
    """Median CPU seconds of one call."""
    found = []
    for _ in range(times + 1):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return statistics.median(found[1:])


def sketch(width: int, k: int) -> Sketch:
    return Sketch(torch.randn(width, min(k, width)) / width, torch.full((width,), 1e-3))


def stacks(k: int, rank: int) -> tuple[list[Stack], list[torch.Tensor]]:
    made, factors = [], []
    for shape in dict.fromkeys(SHAPES.values()):
        names = tuple(
            f"{n}.{i}" for n, s in SHAPES.items() if s == shape for i in range(LAYERS)
        )
        c, g = (stacked([sketch(d, k) for _ in names]) for d in (shape[1], shape[0]))
        made.append(Stack(names, c, g, torch.ones(len(names))))
        for _ in names:
            factors += [
                torch.randn(rank, shape[1]).requires_grad_(),
                torch.randn(shape[0], rank).requires_grad_(),
            ]
    return made, factors


def term(made: list[Stack], factors: list[torch.Tensor]) -> None:
    torch.autograd.grad(Penalties.apply(made, *factors), factors)


def collected(k: int, tokens: int) -> tuple[float, int]:
    """CPU seconds and bytes of one phase's sketches, without the model's own forward and backward."""
    seconds, size = 0.0, 0
    for name, (out, inside) in SHAPES.items():
        widths = (out,) if name in SHARED else (out, inside)
        for width in widths:
            rows = torch.randn(tokens, width)
            kept: dict[str, torch.Tensor] = {}

            def one(
                width: int = width,
                rows: torch.Tensor = rows,
                kept: dict[str, torch.Tensor] = kept,
            ) -> None:
                accumulator = make_accumulator(
                    width, k, "isotropic", torch.device("cpu")
                )
                for piece in rows.split(512):
                    accumulator.add(piece)
                kept.update(packed(INPUTS, "w", accumulator.mean()))

            seconds += cpu(one, 1) * LAYERS
            size += sum(t.numel() * t.element_size() for t in kept.values()) * LAYERS
    return seconds, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sketch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--step", type=float, default=1.2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made, factors = stacks(asked.sketch, asked.rank)
    each = cpu(lambda: term(made, factors), 15)
    print(
        f"term and its gradients, 126 layers, k = {asked.sketch}: {1e3 * each:.1f} ms, {each / asked.step:.1%} of {asked.step} s"
    )
    three = Sketch(torch.randn(2048, 3 * asked.sketch), torch.full((2048,), 1e-3))
    print(
        f"three phases' sketches of width 2048 into one: {1e3 * cpu(lambda: compressed(three, asked.sketch, 'isotropic'), 5):.1f} ms"
    )
    seconds, size = collected(asked.sketch, asked.tokens)
    print(
        f"sketching {asked.tokens} positions of all layers: {seconds:.1f} s; kept: {size / 1e6:.1f} MB"
    )
    shapes = {f"{n}.{i}": s for n, s in SHAPES.items() for i in range(LAYERS)}
    planned = DriftGuardSpec(type="drift-guard", sketch=asked.sketch).kept_bytes(shapes)
    print(f"planned, shared inputs counted for each: {planned / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
