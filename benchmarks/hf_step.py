"""A training step of Gemma 3 270M: mgk against transformers + PEFT, interleaved in one process.

    python benchmarks/hf_step.py [--rounds 5] [--threads 1] [--out step.json]
    python benchmarks/hf_step.py --memory            peak memory, each way in a process of its own

The same LoRA (rank 8, alpha 16, all 126 linear layers), the same batch, AdamW. `bare` is
transformers + PEFT in fp32 with full logits, as anyone writes it; `fastest` is PEFT's best
setting found (bf16 base, autocast, logits at labelled positions only); `fastest32` the same in
fp32, which wins on CPUs that only emulate bf16. `trl` (not by default: it must be installed) is
TRL's `SFTTrainer.training_step` on the same batch, with the trainer's own defaults. Times are medians of process CPU time with one
thread, since the wall clock of a shared machine means little.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import mgk
from mgk_core.contract.bundle import Tokens
from mgk_hf import gemma_q4
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

WAYS = ("bare", "fastest", "fastest32", "mgk")
TRL = "trl"
BATCHES = ("dictionary", "text")
TERMS = (
    ("acute myocardial infarction", "급성 심근경색증"), ("type 2 diabetes mellitus", "제2형 당뇨병"),
    ("chronic obstructive pulmonary disease", "만성 폐쇄성 폐질환"), ("iron deficiency anaemia", "철결핍빈혈"),
    ("atrial fibrillation and flutter", "심방세동 및 조동"), ("bacterial pneumonia", "세균성 폐렴"),
    ("acute appendicitis", "급성 충수염"), ("gastric ulcer", "위궤양"), ("cerebral infarction", "뇌경색증"),
    ("essential hypertension", "본태성 고혈압"), ("viral hepatitis", "바이러스간염"), ("migraine", "편두통"),
    ("rheumatoid arthritis", "류마티스관절염"), ("acute nephritic syndrome", "급성 신염증후군"),
    ("allergic contact dermatitis", "알레르기성 접촉피부염"), ("open-angle glaucoma", "개방각녹내장"),
)  # fmt: skip
PROMPT = "Write the Korean name of the following disease, as it stands in the national classification.\n{}: "


def examples(tokenizer, kind):
    """Return (ids, labels) pairs: 16 completions, or 3 × 128 tokens of text."""
    if kind == "text":
        lines = " ".join(
            f"{ko}은(는) 영어로 {en}라고 하며, 환자의 병력과 검사로 진단한다."
            for en, ko in TERMS
        )
        folder = os.environ.get("MGK_REALDATA")
        if folder:
            lines = (Path(folder) / "text/constitution_of_korea.txt").read_text(
                encoding="utf-8"
            )
        ids = tokenizer(lines * 3).input_ids
        return [(row := tuple(ids[i * 128 : (i + 1) * 128]), row) for i in range(3)]
    pairs = list(TERMS)
    folder = os.environ.get("MGK_REALDATA")
    if folder:
        with (Path(folder) / "kcd/kcd_a_to_m.tsv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        pairs = [(r["en"], r["ko"]) for r in random.Random(0).sample(rows, 16)]
    made = []
    for en, ko in pairs:
        prompt = tokenizer(PROMPT.format(en)).input_ids
        answer = tokenizer(ko + "\n", add_special_tokens=False).input_ids
        made.append((tuple(prompt + answer), tuple([-100] * len(prompt) + answer)))
    return made


class Mgk:
    """The bundle's loss on a packed batch, with mgk's own adapter."""

    def __init__(self):
        self.bundle = build(HfSpec(type="hf"), torch.device("cpu"))
        adapter = mgk.attach(
            self.bundle.model, "lora", rank=8, alpha=16, targets=["all-linear"]
        )
        self.parameters = adapter.parameters()
        self.tokenizer = self.bundle.tokenizer

    def prepare(self, kind):
        return self.bundle.pack(
            [Tokens(ids, labels) for ids, labels in examples(self.tokenizer, kind)]
        )

    def loss(self, batch):
        total, count = self.bundle.loss(batch)
        return total / count


class Peft:
    """transformers + PEFT, right-padded."""

    def __init__(self, dtype, label_only):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = str(gemma_q4.prepare())
        self.dtype, self.label_only = dtype, label_only
        self.tokenizer = AutoTokenizer.from_pretrained(where)
        base = AutoModelForCausalLM.from_pretrained(where, dtype=dtype)
        config = LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(base, config)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def prepare(self, kind):
        made = examples(self.tokenizer, kind)
        width = max(len(i) for i, _ in made)
        ids, mask = (
            torch.zeros(len(made), width, dtype=torch.long),
            torch.zeros(len(made), width, dtype=torch.long),
        )
        labels = torch.full((len(made), width), -100)
        for row, (tokens, wanted) in enumerate(made):
            n = len(tokens)
            ids[row, :n], labels[row, :n], mask[row, :n] = (
                torch.tensor(tokens),
                torch.tensor(wanted),
                1,
            )
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, batch):
        with torch.autocast(
            "cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16
        ):
            if not self.label_only:
                return self.model(**batch).loss
            base = self.model.get_base_model()
            hidden = base.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
            wanted = batch["labels"][:, 1:] != -100
            logits = base.lm_head(hidden[:, :-1][wanted]).float()
            return nn.functional.cross_entropy(logits, batch["labels"][:, 1:][wanted])


class Trl(Peft):
    """The step of TRL's trainer, as its own loop calls it; the optimizer is stepped outside, as for the others."""

    def __init__(self):
        import tempfile

        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        super().__init__(torch.float32, label_only=False)
        settings = SFTConfig(
            output_dir=tempfile.mkdtemp(), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )  # fmt: skip
        data = Dataset.from_list([{"text": ko} for _, ko in TERMS])
        self.trainer = SFTTrainer(
            self.model, settings, train_dataset=data, processing_class=self.tokenizer
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1  # as its loop sets it
        self.parameters = [
            p for p in self.trainer.model.parameters() if p.requires_grad
        ]

    def step(self, batch):
        """Forward and backward; returns the loss."""
        return self.trainer.training_step(self.trainer.model, dict(batch))


def make(way):
    """Build one way, deterministic adapter included."""
    torch.manual_seed(0)
    if way == TRL:
        return Trl()
    if way == "mgk":
        return Mgk()
    return Peft(torch.bfloat16 if way == "fastest" else torch.float32, way != "bare")


def step(way, batch, optimizer):
    """One optimizer step; (CPU seconds, wall seconds, loss)."""
    wall, cpu = time.perf_counter(), time.process_time()
    if hasattr(way, "step"):
        loss = way.step(batch)
    else:
        loss = way.loss(batch)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.process_time() - cpu, time.perf_counter() - wall, float(loss.detach())


def compare(rounds, names, kinds):
    """Interleave all ways; print and return medians and ratios."""
    ways = {name: make(name) for name in names}
    report = {}
    for kind in kinds:
        batches = {n: w.prepare(kind) for n, w in ways.items()}
        optimizers = {
            n: torch.optim.AdamW(w.parameters, lr=0.0) for n, w in ways.items()
        }
        times = {n: [] for n in ways}
        losses = {}
        for number in range(rounds + 1):
            for name, way in ways.items():
                cpu, wall, losses[name] = step(way, batches[name], optimizers[name])
                if number:
                    times[name].append((cpu, wall))
        packed = batches["mgk"]
        shape = {"tokens": packed.tokens, "labels": int((packed.labels != -100).sum())}
        report[kind] = {"batch": shape, "ways": {}}
        print(
            f"\n{kind}: {shape['tokens']} tokens, {shape['labels']} labels; medians of {rounds}"
        )
        for name, seconds in times.items():
            cpu, wall = (
                statistics.median(column) for column in zip(*seconds, strict=True)
            )
            against = statistics.median(statistics_ratio(seconds, times["mgk"]))
            report[kind]["ways"][name] = {
                "cpu_s": cpu,
                "wall_s": wall,
                "mgk_is_faster": against,
                "loss": losses[name],
            }
            print(
                f"  {name:10s} {cpu:7.2f} s CPU {wall:7.2f} s wall   mgk {against:5.2f}x faster   loss {losses[name]:.4f}",
                flush=True,
            )
    return report


def statistics_ratio(seconds, ours):
    """CPU time of each round over mgk's in the same round."""
    return [a[0] / b[0] for a, b in zip(seconds, ours, strict=True)]


def memory_of(way, kind):
    """Peak resident memory of a fresh process in MB: at rest, and during three steps."""
    one = make(way)
    batch = one.prepare(kind)
    optimizer = torch.optim.AdamW(one.parameters, lr=0.0)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    rest = _status("VmRSS")
    for _ in range(3):
        step(one, batch, optimizer)
    print(json.dumps({"rest": rest, "peak": _status("VmHWM")}))


def _status(field):
    line = next(
        ln
        for ln in Path("/proc/self/status").read_text().splitlines()
        if ln.startswith(field)
    )
    return int(line.split()[1]) / 1024


def memories(names, kinds):
    """Measure every way and batch in a process of its own."""
    report = {}
    for kind in kinds:
        report[kind] = {}
        for way in names:
            command = [sys.executable, __file__, "--memory-of", way, kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            report[kind][way] = json.loads(done.stdout.strip().splitlines()[-1])
        bare = report[kind]["bare"]["peak"]
        for way, found in report[kind].items():
            print(
                f"{kind:11s} {way:10s} at rest {found['rest']:6.0f} MB  peak {found['peak']:6.0f} MB  {found['peak'] / bare:.2f} of bare"
            )
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, TRL), default=list(WAYS))
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", nargs=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        memory_of(*arguments.memory_of)
        return
    report = (
        memories(arguments.ways, arguments.batches)
        if arguments.memory
        else compare(arguments.rounds, arguments.ways, arguments.batches)
    )
    report["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
