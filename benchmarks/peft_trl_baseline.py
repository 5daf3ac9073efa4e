"""The three phases of `korean-medical` as a script with PEFT and TRL, as one would write it without mgk.

    python benchmarks/peft_trl_baseline.py BASE OUT [--steps 40]

BASE is a directory with a model (mgk keeps its converted base in the cache directory). Same data, template, adapter,
optimizer, schedule, steps and batch sizes as the pipeline; every probe is measured before the first phase and after
each. Writes OUT/model and OUT/result.json. docs/explanation/comparison.md sets it beside `mgk run`.
"""

# --- the pipeline itself: what `mgk run` is given as a declaration ------------------------------------------------

import argparse
import json
import math
import resource
import time
from importlib.resources import files
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

DATA = files("mgk_phases") / "data" / "korean_medical"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows(folder, split):
    return [
        json.loads(line)
        for line in (DATA / folder / f"{split}.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    ]


def entry(row):
    return {"prompt": f"영어: {row['en']}\n한국어:", "completion": f" {row['ko']}"}


def question(row):
    return {
        "prompt": f"문제: {row['question']}\n정답:",
        "completion": f" {row['ABCDE'[row['answer'] - 1]]}",
    }


PHASES = {
    "plain_text": (
        lambda: [{"text": r["text"]} for r in rows("text", "train")],
        3,
        128,
    ),
    "dictionary": (lambda: [entry(r) for r in rows("dictionary", "train")], 16, None),
    "mcq": (lambda: [question(r) for r in rows("mcq", "train")], 6, None),
}


def train(model, tokenizer, name, out, steps):
    load, batch, length = PHASES[name]
    plain = length is not None
    settings = SFTConfig(
        output_dir=str(out / name), max_steps=steps, per_device_train_batch_size=batch, learning_rate=5e-4,
        lr_scheduler_type="cosine", warmup_steps=4, max_grad_norm=1.0, weight_decay=0.0, packing=plain,
        max_length=length or 512, completion_only_loss=None if plain else True, report_to=[], save_strategy="no",
        logging_steps=10, disable_tqdm=True, use_cpu=not torch.cuda.is_available(), seed=0, bf16=False,
        gradient_checkpointing=False, dataloader_pin_memory=False,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(load()),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.train()
    trainer.model.save_pretrained(out / name / "adapter")
    return trainer.model.merge_and_unload(safe_merge=True)


# --- what has to be added to know what each phase gained and cost -------------------------------------------------


@torch.no_grad()
def logprobs(model, tokenizer, prompt, completion):
    """Return the log-probability of each token of the completion."""
    head = tokenizer(prompt)["input_ids"]
    tail = tokenizer(completion, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([head + tail], device=model.device)
    scores = model(ids).logits[0, len(head) - 1 : -1].float().log_softmax(-1)
    return scores.gather(1, ids[0, len(head) :, None]).squeeze(1)


def perplexity(model, tokenizer, texts):
    parts = [logprobs(model, tokenizer, "", text) for text in texts]
    return {
        "perplexity": math.exp(
            -sum(float(p.sum()) for p in parts) / sum(len(p) for p in parts)
        )
    }


def answers(model, tokenizer, items):
    means = [
        float(logprobs(model, tokenizer, i["prompt"], i["completion"]).mean())
        for i in items
    ]
    return {"logprob": sum(means) / len(means), "n": len(means)}


def options(model, tokenizer, questions):
    right, own = 0, 0.0
    for row in questions:
        prompt = question(row)["prompt"]
        scores = [
            float(logprobs(model, tokenizer, prompt, f" {row[letter]}").mean())
            for letter in "ABCDE"
        ]
        own += scores[row["answer"] - 1]
        right += max(range(5), key=scores.__getitem__) == row["answer"] - 1
    return {
        "logprob": own / len(questions),
        "accuracy": right / len(questions),
        "n": len(questions),
    }


def measure(model, tokenizer, limit):
    model.eval()
    return {
        "text": perplexity(model, tokenizer, [r["text"] for r in rows("text", "test")]),
        "dictionary": answers(
            model, tokenizer, [entry(r) for r in rows("dictionary", "test")[:limit]]
        ),
        "mcq": options(model, tokenizer, rows("mcq", "test")[:limit]),
        "base-ko": perplexity(
            model, tokenizer, [r["text"] for r in rows("base", "probe_ko")[:limit]]
        ),
        "base-en": perplexity(
            model, tokenizer, [r["text"] for r in rows("base", "probe_en")[:limit]]
        ),
    }


# --- main ---------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument(
        "--limit",
        type=int,
        default=60,
        help="items of each probe, as the pipeline has it",
    )
    arguments = parser.parse_args()
    set_seed(0)
    began, seconds, matrix = (
        time.perf_counter(),
        {"training": 0.0, "evaluation": 0.0},
        {},
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    for name in ("base", *PHASES):
        start = time.perf_counter()
        if name != "base":
            model = train(model, tokenizer, name, arguments.out, arguments.steps)
        trained = time.perf_counter()
        matrix[name] = measure(model, tokenizer, arguments.limit)
        seconds["training"] += trained - start
        seconds["evaluation"] += time.perf_counter() - trained
        print(name, json.dumps(matrix[name]), flush=True)
    model.save_pretrained(arguments.out / "model")
    tokenizer.save_pretrained(arguments.out / "model")
    seconds |= {"whole": time.perf_counter() - began, "cpu": time.process_time()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"seconds": seconds, "peak_rss": peak, "matrix": matrix}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"seconds": seconds, "peak_rss": peak}))


if __name__ == "__main__":
    main()
