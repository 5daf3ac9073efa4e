"""One part of benchmarks/gpu.sh: a figure of mgk on a GPU, beside what others take for the same work.

    python benchmarks/gpu.py environment|step|merge|phase [SHAPE] [bf16|nf4] --out FILE [--smoke]
    python benchmarks/gpu.py table DIR

Models have random weights in the shapes of Gemma 3 1B and 4B and Llama 3.1 8B; nothing is downloaded. Each way
writes the results file after every round, so that what was measured stays if the process is ended.
`--smoke`: the same code on the CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from attrs import frozen

import mgk
from mgk_core.contract.bundle import PhaseData, Tokens
from mgk_core.model.digest import base_digest
from mgk_hf.bundle import HfBundle
from mgk_hf.network import take_apart
from mgk_hf.tiny import tiny_tokenizer

RANK = 16
ROUNDS, WARM = 8, 3
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
}
"""Dense bf16 operations per second by the makers' data sheets, by a part of the device's name."""


@frozen
class Work:
    """What is trained on: a shape by name, packed rows of so many tokens."""

    shape: str
    length: int
    device: torch.device
    smoke: bool


SHAPES = {
    "1b": ("Gemma3TextConfig", "Gemma3ForCausalLM", {
        "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512}),
    "4b": ("Gemma3TextConfig", "Gemma3ForCausalLM", {
        "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 1024}),
    "8b": ("LlamaConfig", "LlamaForCausalLM", {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0}),
}  # fmt: skip
"""Name → (configuration class, model class, keys)."""
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}


def config_of(work):
    """Return a shape's configuration."""
    import transformers

    name, _, keys = SHAPES[work.shape]
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 32,
    }
    small = {**SMALL, **{k: v for k, v in heads.items() if k in keys}}
    return getattr(transformers, name)(
        **({**keys, **small} if work.smoke else keys), attn_implementation="sdpa"
    )


def model_of(work, precision):
    """Return a model with random weights on the device, bf16 or packed to nf4."""
    import transformers

    made = getattr(transformers, SHAPES[work.shape][1])
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if work.smoke else torch.bfloat16)
    try:
        with work.device:
            model = made(config_of(work))
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False).eval()
    if precision == "nf4":
        pack_nf4(model)
    return model


def pack_nf4(model):
    """Put bitsandbytes' 4-bit layers with double quantization in place of every linear layer but the head."""
    import bitsandbytes as bnb

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child is not head:
                new = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=child.bias is not None,
                    compute_dtype=child.weight.dtype, compress_statistics=True, quant_type="nf4",
                )  # fmt: skip
                device = child.weight.device
                new.weight = bnb.nn.Params4bit(
                    child.weight.data.cpu(),
                    requires_grad=False,
                    quant_type="nf4",
                    compress_statistics=True,
                )
                setattr(parent, name, new.to(device))


def rows_of(work, rounds):
    """Return one packed row of documents a round, as lists of token ids: the same for every way."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = config_of(work).vocab_size
    rows = []
    for _ in range(rounds):
        cuts = sorted(torch.randint(1, work.length, (3,), generator=generator).tolist())
        ends = [0, *dict.fromkeys(cuts), work.length]
        ids = torch.randint(
            10, vocabulary, (work.length,), generator=generator
        ).tolist()
        rows.append([ids[a:b] for a, b in itertools.pairwise(ends)])
    return rows


class MgkWay:
    """mgk's bundle, adapter and standard step."""

    def __init__(self, work, precision):
        from mgk_core.contract.context import PhaseContext, StepContext
        from mgk_core.contract.settings import PhaseConfig, RunConfig
        from mgk_core.contract.specs import Spec
        from mgk_sgd.optimizers import make_optimizer
        from mgk_sgd.specs import AdamwSpec, StandardStepSpec
        from mgk_sgd.step import StandardStep

        self.bundle = bundle_of(model_of(work, precision), work)
        adapter = mgk.attach(
            self.bundle.model, "lora", rank=RANK, alpha=RANK, targets=["all-linear"]
        )
        given = Spec(type="given")
        optimizer = AdamwSpec(type="adamw", lr=1e-4, clip=1.0)
        phase = PhaseConfig(
            name="p", data=given, adapter=given, optimizer=optimizer, merge=given,
            step=StandardStepSpec(type="standard"),
        )  # fmt: skip
        ctx = PhaseContext(
            config=RunConfig(name="r", base=given, phases=(phase,)), phase=phase, index=0, bundle=self.bundle,
            device=work.device, directory=Path(), adapter=adapter, steps=ROUNDS + WARM,
        )  # fmt: skip
        ctx.optimizer = make_optimizer(adapter, optimizer)
        self.step_of = StandardStep(StepContext(ctx, ()))
        self.bundle.model.train()
        self.number = 0

    def prepare(self, row):
        return self.bundle.pack([Tokens(tuple(ids), tuple(ids)) for ids in row])

    def step(self, batch):
        out = self.step_of([batch], self.number)
        self.number += 1
        return out.loss


class PeftWay:
    """A bare loop: transformers + PEFT, documents in one row, separated by their positions."""

    def __init__(self, work, precision):
        from peft import LoraConfig, get_peft_model

        model = model_of(work, precision)
        config = LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(model, config).train()
        self.device = work.device
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        fused = work.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-4, weight_decay=0.0, fused=fused
        )

    def prepare(self, row):
        ids = torch.tensor([[i for part in row for i in part]], device=self.device)
        places = torch.tensor(
            [[i for part in row for i in range(len(part))]], device=self.device
        )
        labels = ids.clone()
        labels[places == 0] = -100
        return {
            "input_ids": ids,
            "position_ids": places,
            "labels": labels,
            "use_cache": False,
        }

    def step(self, batch):
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"
        )
        with autocast:
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class LigerWay(PeftWay):
    """The same loop on Liger's kernels, which TRL's trainer switches on with use_liger_kernel."""

    def __init__(self, work, precision):
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        super().__init__(work, precision)
        _apply_liger_kernel_to_instance(model=self.model.get_base_model())


class TrlWay(PeftWay):
    """The step of TRL's `SFTTrainer`, with Liger's kernels where they are installed; stepped outside, as the others."""

    def __init__(self, work, precision):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        super().__init__(work, precision)
        cuda = work.device.type == "cuda"
        settings = SFTConfig(
            output_dir=tempfile.mkdtemp(), report_to=[], use_cpu=not cuda, bf16=cuda, gradient_checkpointing=False,
            dataloader_pin_memory=False, use_liger_kernel=importlib.util.find_spec("liger_kernel") is not None,
        )  # fmt: skip
        data = Dataset.from_list([{"text": "random weights need no words"}])
        self.trainer = SFTTrainer(
            self.model,
            settings,
            train_dataset=data,
            processing_class=tiny_tokenizer(["text"]),
        )
        self.trainer.current_gradient_accumulation_steps = 1  # as its loop sets it
        self.model = self.trainer.model

    def step(self, batch):
        loss = self.trainer.training_step(self.model, dict(batch))
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class UnslothWay(PeftWay):
    """Unsloth's own adapter and kernels on the same weights, written to a directory first."""

    def __init__(self, work, precision):
        from unsloth import FastLanguageModel

        with tempfile.TemporaryDirectory() as folder:
            model_of(work, "bf16").save_pretrained(folder)
            tiny_tokenizer(["text"]).save_pretrained(folder)
            model, _ = FastLanguageModel.from_pretrained(
                folder,
                max_seq_length=work.length,
                dtype=torch.bfloat16,
                load_in_4bit=precision == "nf4",
            )
        linear = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
        self.model = FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=RANK, target_modules=linear
        )
        self.device = work.device
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-4, weight_decay=0.0, fused=True
        )


WAYS = {"mgk": (MgkWay, "mgk"), "peft": (PeftWay, "peft"), "liger": (LigerWay, "liger_kernel"),
        "trl": (TrlWay, "trl"), "unsloth": (UnslothWay, "unsloth")}  # fmt: skip
"""Way → its class and the library that it needs."""


def bundle_of(model, work):
    """Return mgk's bundle of a model."""
    tokenizer = tiny_tokenizer(["random weights need no words"])
    return HfBundle(take_apart(model), tokenizer, work.device)


def step(work, precision, report, save):
    """Measure steps of every way, interleaved; a way that fails is named with its error."""
    rows = rows_of(work, ROUNDS + WARM)
    made = {}
    for name, (cls, library) in WAYS.items():
        if importlib.util.find_spec(library) is None:
            report["ways"][name] = {"skipped": f"{library} is not installed"}
            continue
        reset(work.device)
        before = held(work.device)
        try:
            way = cls(work, precision)
            batch = way.prepare(rows[0])
            loss = float(way.step(batch))
            made[name] = way
            report["ways"][name] = {
                "first_loss": loss,
                "peak_bytes": peak(work.device) - before,
            }
        except Exception as error:  # noqa: BLE001 - one way that fails must not hide the others
            report["ways"][name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        save()
    times = {name: [] for name in made}
    for number, row in enumerate(rows):
        for name, way in made.items():
            batch = way.prepare(row)
            began = now(work.device)
            loss = way.step(batch)
            seconds = now(work.device) - began
            if number >= WARM:
                times[name].append(seconds)
                entry = report["ways"][name]
                entry["seconds"] = statistics.median(times[name])
                entry["tokens_per_second"] = work.length / entry["seconds"]
                entry["rounds"], entry["last_loss"] = len(times[name]), float(loss)
        save()
    report["flops_per_token"] = operations(next(iter(made.values())), work)
    device_peak = peak_flops(work.device)
    for name in made:
        entry = report["ways"][name]
        if device_peak:
            entry["utilisation"] = (
                entry["tokens_per_second"] * report["flops_per_token"] / device_peak
            )
        entry["against_peft"] = (
            report["ways"].get("peft", {}).get("seconds", 0) / entry["seconds"] or None
        )
    save()


def operations(way, work):
    """Return operations a token of a LoRA step: 4 per weight (forward, and the gradient of its input), attention left out."""
    model = way.bundle.model if isinstance(way, MgkWay) else way.model
    head = model.get_output_embeddings()
    table = head.weight.numel()
    layers = config_of(work)
    depth = layers.hidden_size // layers.num_attention_heads
    depth = getattr(layers, "head_dim", None) or depth
    heads = layers.num_attention_heads + 2 * layers.num_key_value_heads
    attention = layers.hidden_size * depth * (heads + layers.num_attention_heads)
    each = attention + 3 * layers.hidden_size * layers.intermediate_size
    return 4 * (layers.num_hidden_layers * each + table)


def merge(work, precision, report, save):
    """Measure merging all linear layers, undoing it, statistics over a batch, and the digest of the weights."""
    bundle = bundle_of(model_of(work, "bf16"), work)
    adapter = mgk.attach(
        bundle.model, "lora", rank=RANK, alpha=RANK, targets=["all-linear"]
    )
    with torch.no_grad():
        for i, parameter in enumerate(adapter.parameters()):
            generator = torch.Generator(parameter.device).manual_seed(i)
            parameter.normal_(std=0.01, generator=generator)
    began = now(work.device)
    base_digest(bundle.model)
    report["digest_seconds"] = now(work.device) - began
    save()
    reset(work.device)
    began = now(work.device)
    found = mgk.merge(bundle.model, adapter)
    report |= {
        "merge_seconds": now(work.device) - began, "merge_peak_bytes": peak(work.device), "kept": float(found.kept)
    }  # fmt: skip
    save()
    began = now(work.device)
    mgk.rollback(bundle.model, found)
    report["rollback_seconds"] = now(work.device) - began
    save()


@frozen(eq=False)
class Rows:
    """A training set of packed rows."""

    bundle: HfBundle
    rows: list
    digest: str = "rows"

    def __len__(self):
        return len(self.rows)

    def batch(self, rows):
        return self.bundle.pack(
            [Tokens(tuple(ids), tuple(ids)) for row in rows for ids in self.rows[row]]
        )


def phase(work, precision, report, save):
    """Measure a whole phase without a run directory: what statistics, verification and merge add to its steps."""
    bundle = bundle_of(model_of(work, "bf16"), work)
    count = 4 if work.smoke else 12
    rows = Rows(bundle, rows_of(work, count))
    calibration = tuple(rows.batch([i]) for i in range(2))
    data = PhaseData(
        train=rows, probes=(), verify=(rows.batch([0]),), calibration=calibration
    )
    parts, began, current = {}, time.perf_counter(), ["before the first part"]

    def sink(event):
        if event["event"] == "part":
            spent = time.perf_counter() - sink.at
            parts[current[0]] = parts.get(current[0], 0.0) + spent
            sink.at, current[0] = time.perf_counter(), event["part"]

    sink.at = began
    tables = {
        "adapter": {"type": "lora", "rank": RANK, "targets": ["all-linear"]},
        "optimizer": {"type": "adamw", "lr": 1e-4},
        "train": {"steps": count, "batch_size": 1},
    }
    mgk.run_phase(bundle, data, tables, sink=sink)
    sink({"event": "part", "part": "end"})
    training = parts.get("training", 0.0)
    report |= {
        "parts": parts,
        "steps": count,
        "seconds_beside_training": sum(parts.values()) - training,
    }
    save()


def environment(work, precision, report, save):
    """Note the device and the versions."""
    libraries = (
        "transformers",
        "peft",
        "trl",
        "liger_kernel",
        "unsloth",
        "bitsandbytes",
        "triton",
    )
    found = {}
    for name in libraries:
        with contextlib.suppress(Exception):
            found[name] = __import__("importlib.metadata").metadata.version(
                name.replace("_", "-")
            )
    report |= {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "libraries": found,
    }
    if work.device.type == "cuda":
        properties = torch.cuda.get_device_properties(work.device)
        report |= {"device": properties.name, "memory_bytes": properties.total_memory}
        report["products"] = {
            str(d): products(work.device, d) for d in (torch.float32, torch.bfloat16)
        }
    save()


def products(device, dtype):
    """Return operations a second of a square product of 8,192."""
    x = torch.randn(8192, 8192, device=device, dtype=dtype)
    x @ x
    began = now(device)
    for _ in range(5):
        x @ x
    return 5 * 2 * 8192**3 / (now(device) - began)


def now(device):
    """Return the time once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def held(device):
    """Return the bytes that are held on the device: by the ways made before. 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak(device):
    """Return the peak bytes on the device since `reset`; 0 on a CPU, where ways share one process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def peak_flops(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def table(folder):
    """Print what was measured, and what was not."""
    for file in sorted(Path(folder).glob("*.json")):
        found = json.loads(file.read_text())
        print(f"{file.stem}: {'' if found.get('whole') else 'CUT OFF '}", end="")
        rest = {
            k: v for k, v in found.items() if k not in ("ways", "whole", "arguments")
        }
        print(json.dumps(rest, default=str)[:400])
        for name, entry in found.get("ways", {}).items():
            print(f"  {name:8s} {json.dumps(entry)}")


PARTS = {"environment": environment, "step": step, "merge": merge, "phase": phase}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*PARTS, "table"])
    parser.add_argument("shape", nargs="?", default="1b")
    parser.add_argument("precision", nargs="?", default="bf16", choices=("bf16", "nf4"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.part == "table":
        return table(arguments.shape)
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("gpu.py: no CUDA device; --smoke runs tiny shapes on the CPU")
    device = torch.device("cpu" if arguments.smoke else "cuda")
    work = Work(
        arguments.shape, 64 if arguments.smoke else 2048, device, arguments.smoke
    )
    report = {
        "arguments": sys.argv[1:],
        "smoke": arguments.smoke,
        "length": work.length,
        "whole": False,
    }
    if arguments.part == "step":
        report["ways"] = {}

    def save():
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1, default=str))

    PARTS[arguments.part](work, arguments.precision, report, save)
    report["whole"] = True
    save()
    return None


if __name__ == "__main__":
    main()
