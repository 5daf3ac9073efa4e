"""Time and memory of a merge against PEFT's, at the shapes of Gemma 3 270M.

    OMP_NUM_THREADS=1 python benchmarks/merge_speed.py [--rounds 7] [--dtype float32 bfloat16] [--ways PEFT mgk] [--no-memory]

All 126 linear layers of 18 blocks of width 640, LoRA of rank 8 on each. *mgk* is the rule ``exact`` with its figures
and its residual, *PEFT* is ``merge_and_unload(safe_merge=True)``. Each way has a process of its own, as a run has, and
the processes take turns, each building a model and merging it. CPU seconds of one thread (what other programs take does
not count, the cache that they spoil does). *first*: the first merge of the process, for which the system has to hand out
memory page by page; the figure of the others is their median. Extra memory is the peak of a fresh process over what it
held before the merge, without the old weights in files mapped to memory.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import mgk

RANK, ALPHA, BLOCKS = 8, 16.0, 18
SHAPES = {
    "q_proj": (640, 1024), "k_proj": (640, 256), "v_proj": (640, 256), "o_proj": (1024, 640),
    "gate_proj": (640, 2048), "up_proj": (640, 2048), "down_proj": (2048, 640),
}  # fmt: skip
WAYS = {
    "PEFT": {}, "mgk": {}, "mgk, no residual": {"residual": False}, "mgk, bf16 residual": {"residual_dtype": "bf16"},
    "mgk, undo=disk": {"undo": "disk"}, "mgk, undo=disk, no residual": {"undo": "disk", "residual": False},
}  # fmt: skip


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    blocks = (
        nn.ModuleDict({n: nn.Linear(i, o, bias=False) for n, (i, o) in SHAPES.items()})
        for _ in range(BLOCKS)
    )
    return nn.Sequential(nn.ModuleList(blocks)).to(dtype).requires_grad_(False)


def with_mgk(base: nn.Module, **options: object) -> Callable[[], object]:
    adapter = mgk.attach(base, "lora", rank=RANK, alpha=ALPHA, targets=["all-linear"])
    randomise(adapter.parameters())
    return lambda: mgk.merge(base, adapter, **options)


def with_peft(base: nn.Module) -> Callable[[], object]:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    )
    randomise(p for p in wrapped.parameters() if p.requires_grad)
    return lambda: wrapped.merge_and_unload(safe_merge=True)


def randomise(parameters) -> None:
    """Factors that make ‖ΔW‖ about a thousandth of ‖W‖."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 2e-3)


def prepare(way: str, dtype: torch.dtype) -> Callable[[], object]:
    base = model(dtype)
    return with_peft(base) if way == "PEFT" else with_mgk(base, **WAYS[way])


def ways(dtype: str, chosen: list[str]) -> list[str]:
    """Residuals are of 16-bit weights only."""
    return [w for w in chosen if dtype != "float32" or "residual" not in w]


def work(way: str, dtype: torch.dtype) -> None:
    """Merge once for each line read, and print the CPU seconds it took."""
    for _ in sys.stdin:
        merge = prepare(way, dtype)
        gc.collect()
        start = time.process_time()
        report = merge()
        print(time.process_time() - start, flush=True)
        del merge, report


def times(dtype: str, rounds: int, chosen: list[str]) -> dict[str, list[float]]:
    """Return each way's seconds: of the first merge, and of ``rounds`` more."""
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    workers = {
        way: subprocess.Popen(
            [sys.executable, __file__, "--work", way, "--dtype", dtype], **pipes
        )
        for way in ways(dtype, chosen)
    }
    taken: dict[str, list[float]] = {way: [] for way in workers}
    for _ in range(rounds + 1):
        for way, worker in workers.items():
            worker.stdin.write("merge\n")
            worker.stdin.flush()
            taken[way].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return taken


def status(key: str) -> float:
    """Return a figure of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def extra_memory(way: str, dtype: torch.dtype) -> float:
    """Merge in this (fresh) process; return peak minus before, MB."""
    merge = prepare(way, dtype)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="ascii"
    )  # the peak is counted from here
    merge()
    return status("VmHWM") - before


def in_fresh_process(way: str, dtype: str) -> float:
    command = [sys.executable, __file__, "--one", way, "--dtype", dtype]
    return float(
        subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument(
        "--ways",
        nargs="+",
        default=list(WAYS),
        choices=list(WAYS),
        help="PEFT has to be among them",
    )
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.one:
        print(extra_memory(arguments.one, getattr(torch, arguments.dtype[0])))
        return
    if arguments.work:
        work(arguments.work, getattr(torch, arguments.dtype[0]))
        return
    for name in arguments.dtype:
        bits = torch.finfo(getattr(torch, name)).bits
        weights = sum(i * o for i, o in SHAPES.values()) * BLOCKS * bits // 8 / 2**20
        print(
            f"\n{name}: {weights:.0f} MB of adapted weights, {arguments.rounds} rounds after the first\n"
        )
        print(
            "| way | CPU s | quartiles | PEFT's ÷ its own | first | PEFT's first ÷ its own | extra memory, MB |"
        )
        print("|---|---|---|---|---|---|---|")
        taken = times(name, arguments.rounds, arguments.ways)
        for way, (first, *seconds) in taken.items():
            low, middle, high = statistics.quantiles(seconds, n=4)
            ratio = statistics.median(
                p / s for p, s in zip(taken["PEFT"][1:], seconds, strict=True)
            )
            memory = "" if arguments.no_memory else f"{in_fresh_process(way, name):.0f}"
            print(
                f"| {way} | {middle:.2f} | {low:.2f}–{high:.2f} | {ratio:.2f}× | {first:.2f} |"
                f" {taken['PEFT'][0] / first:.2f}× | {memory} |"
            )


if __name__ == "__main__":
    main()
