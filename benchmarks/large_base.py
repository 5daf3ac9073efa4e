"""One training step of a base that barely fits: its peak memory, of random weights in a shape of Gemma 3.

    python benchmarks/large_base.py [--shape 1b|4b] [--dtype stored|auto] [--tokens 256] [--out FILE]

Writes a bf16 model directory of that shape, tensor by tensor, so that making it needs no memory, and trains one
step of a LoRA (rank 8, all linear layers) on it in a process of its own. Peaks are those of the process's
resident memory, files that are mapped into it included: while it loads, and in the step. The blocks of weights
repeat one random block, which changes neither memory nor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

import mgk
from mgk_core.contract.bundle import Tokens
from mgk_core.model.device import process_peak, reset_process_peak, resident
from mgk_core.model.digest import base_digest
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_hf.tiny import tiny_tokenizer

SHAPES = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32},
    "1b": {
        "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256},
    "4b": {
        "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256},
}  # fmt: skip
BLOCK = 1 << 22
"""Random numbers that are repeated."""
WORDS = ("혈압", "혈당", "heart", "lung")


def write(directory, shape):
    """Write a model directory of a shape: one file a layer or table, so that one tensor is in memory at a time."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(**SHAPES[shape], architectures=["Gemma3ForCausalLM"])
    config.dtype = "bfloat16"
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    noise = noise.to(torch.bfloat16)
    names, index = model.state_dict(), {}
    names.pop("lm_head.weight", None)  # tied
    total = 0
    for number, (name, like) in enumerate(names.items()):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        count = like.numel()
        tensor = noise.repeat(-(-count // BLOCK))[:count].view(like.shape).clone()
        save_file({name: tensor}, directory / file, metadata={"format": "pt"})
        index[name], total = file, total + 2 * count
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    config.save_pretrained(directory)
    tiny_tokenizer(WORDS, 300).save_pretrained(directory)
    return total


def step(directory, dtype, tokens):
    """Load the base and train one step; print what it took."""
    reset_process_peak()
    began = time.perf_counter()
    bundle = build(
        HfSpec(type="hf", id=str(directory), dtype=dtype), torch.device("cpu")
    )
    loaded, load_peak = time.perf_counter() - began, process_peak()
    adapter = mgk.attach(bundle.model, "lora", rank=8, alpha=16, targets=["all-linear"])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    ids = tuple(i % 290 + 5 for i in range(tokens))
    batch = bundle.pack([Tokens(ids, ids)])
    rest = resident()
    reset_process_peak()
    began = time.process_time()
    total, count = bundle.loss(batch)
    (total / count).backward()
    optimizer.step()
    spent, peak = time.process_time() - began, process_peak()
    began = time.perf_counter()
    base_digest(bundle.model)
    print(
        json.dumps({
            "dtype": dtype, "tokens": tokens, "load_seconds": loaded, "load_peak": load_peak, "rest": rest, "peak": peak,
            "step_cpu_seconds": spent, "digest_seconds": time.perf_counter() - began, "threads": torch.get_num_threads(),
        })
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="4b")
    parser.add_argument("--dtype", nargs="+", default=["stored"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--at", type=Path, help="where the model directory is made")
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.step:
        step(arguments.step, arguments.dtype[0], arguments.tokens)
        return
    report = {"shape": arguments.shape, "steps": []}
    with tempfile.TemporaryDirectory(dir=arguments.at) as folder:
        report["base_bytes"] = write(Path(folder), arguments.shape)
        for dtype in arguments.dtype:
            command = [sys.executable, __file__, "--step", folder, "--dtype", dtype, "--tokens", str(arguments.tokens)]  # fmt: skip
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.strip().splitlines()[-1])
            report["steps"].append(found)
            print(
                f"{arguments.shape} {dtype}: base {report['base_bytes'] / 1e9:.1f} GB, peak of loading"
                f" {found['load_peak'] / 1e9:.1f} GB, of a step {found['peak'] / 1e9:.1f} GB,"
                f" {found['step_cpu_seconds']:.0f} CPU seconds",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
