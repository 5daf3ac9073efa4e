"""Scoring five-option questions on Gemma 3 270M: packed behind one copy of the question, against one by one.

    python benchmarks/hf_scoring.py [--bare] [--questions 100] [--threads 2] [--rounds 3]

The shipped questions of the test split as the default pipeline asks them: the prompt lists the options (``--bare``:
it does not), and the content of each is scored. *one by one* is transformers in fp32, one row a question and
option, logits where the option is, the mean log-likelihood of the option's tokens. Prints wall and CPU seconds of
either (*packed*: median of the rounds) and on how many questions both choose the same option.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from importlib.resources import files

import torch

from mgk_core.contract.bundle import Choice
from mgk_hf import gemma_q4
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_text.records import Question
from mgk_text.templates import McqTemplate


def questions(tokenizer, count, listed):
    """Return the first questions of the test split as items: prompt and options in tokens."""
    path = files("mgk_phases") / "data/korean_medical/mcq/test.jsonl"
    made = []
    for line in path.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        asked = Question(
            row["question"], tuple(row[x] for x in "ABCDE"), row["answer"] - 1
        )
        prompt = tuple(tokenizer(McqTemplate("content", listed).ask(asked)).input_ids)
        options = tuple(
            tuple(tokenizer(f" {row[x]}\n", add_special_tokens=False).input_ids)
            for x in "ABCDE"
        )
        made.append(Choice(prompt=prompt, options=options, answer=row["answer"] - 1))
    return made


@torch.no_grad()
def one_by_one(model, items):
    """Return each item's mean log-likelihood per token of each option."""
    found = []
    for item in items:
        scores = []
        for option in item.options:
            ids = torch.tensor([[*item.prompt, *option]])
            logits = model(input_ids=ids, logits_to_keep=len(option) + 1).logits[0, :-1]
            picked = torch.log_softmax(logits.float(), -1).gather(
                1, torch.tensor(option)[:, None]
            )
            scores.append(float(picked.mean()))
        found.append(scores)
    return found


def packed(bundle, items):
    """Return the same from the bundle."""
    return [
        [s / len(o) for s, o in zip(scored.logprob, item.options, strict=True)]
        for scored, item in zip(bundle.score(items), items, strict=True)
    ]


def timed(run, *arguments):
    wall, cpu = time.perf_counter(), time.process_time()
    found = run(*arguments)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bare", action="store_true", help="do not list the options in the prompt"
    )
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    from transformers import AutoModelForCausalLM

    bundle = build(HfSpec(type="hf"), torch.device("cpu"))
    items = questions(bundle.tokenizer, arguments.questions, not arguments.bare)
    plain = AutoModelForCausalLM.from_pretrained(
        str(gemma_q4.prepare()), dtype=torch.float32
    ).eval()
    (
        one_by_one(plain, items[:1]),
        packed(bundle, items[:8]),
    )  # what happens once happens here
    rounds = [timed(packed, bundle, items) for _ in range(arguments.rounds)]
    theirs, wall, cpu = timed(one_by_one, plain, items)
    mine = rounds[0][0]
    best = [
        [max(range(5), key=s.__getitem__) for s in scores] for scores in (mine, theirs)
    ]
    own_wall, own_cpu = (statistics.median(r[i] for r in rounds) for i in (1, 2))
    print(f"one by one, fp32   {wall:7.2f} s wall {cpu:7.2f} s CPU")
    print(
        f"packed             {own_wall:7.2f} s wall {own_cpu:7.2f} s CPU   {cpu / own_cpu:.1f}x less CPU"
    )
    same = sum(a == b for a, b in zip(*best, strict=True))
    furthest = max(
        abs(a - b)
        for x, y in zip(mine, theirs, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    right = [
        sum(b == i.answer for b, i in zip(chosen, items, strict=True))
        for chosen in best
    ]
    print(
        f"the same choice on {same} of {len(items)}; scores differ by at most {furthest:.3f} nats per token"
    )
    print(
        f"right: packed {right[0]}, one by one {right[1]}, chance {len(items) / 5:.0f}"
    )


if __name__ == "__main__":
    main()
