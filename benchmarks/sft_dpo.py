"""What DPO on the shipped preference pairs does to a base: held-out margin, divergence, base probes.

    python benchmarks/sft_dpo.py [--smoke] [--out DIRECTORY] [--set KEY=VALUE ...]

Runs the recipe sft-then-dpo on the real default base (``--smoke``: on tiny-gemma, a few steps) and prints Markdown: the
held-out pairs' share and margin after each phase with standard errors, the paired change of every probe over the DPO phase
and over the whole run, and KL(model ‖ base) per token on held-out chosen answers and on the base's own probe texts. With
``--out`` the run directory is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mgk
from mgk_core.contract.bundle import Bundle, Choice, Tokens
from mgk_core.run.runner import run_pipeline
from mgk_phases.recipes import find
from mgk_preference.chunks import by_rows
from mgk_preference.formulas import divergence

SHORT = ("phases.sft.data.generate=0", 'defaults.evaluate.limits={"base-*" = 32}')
"""Nothing is generated, and half of the base's texts are scored: minutes of two cores."""
SMOKE = (
    "base.id=tiny-gemma", "defaults.train.steps=3", "defaults.train.batch_size=4",
    "defaults.evaluate.limit=12",
)  # fmt: skip
DATA = "package:mgk_phases/data/preference/"
TEXTS = "package:mgk_phases/data/korean_medical/base/"
KL_TEXTS = 24  # of each kind
PREFERENCE = ("preference", "preference-margin", "preference-logprob")


def main() -> None:
    """Run the recipe and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    overrides = [*SHORT, *(SMOKE if arguments.smoke else ()), *arguments.set]
    with tempfile.TemporaryDirectory(prefix="mgk-sft-dpo-") as scratch:
        config = Path(scratch) / "sft-then-dpo.toml"
        config.write_text(find("sft-then-dpo").text, encoding="utf-8")
        out = arguments.out or Path(scratch) / "run"
        began = time.perf_counter()
        result = run_pipeline(None, config=config, out=out, overrides=overrides)
        seconds = time.perf_counter() - began
        report(result.directory, base_of(result.directory), seconds)


def base_of(run: Path) -> str:
    """Return the id of a run's base."""
    table = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    return str(table["base"]["id"])


def report(run: Path, base: str, seconds: float) -> None:
    """Print the tables of a finished run."""
    found = json.loads((run / "retention.json").read_text(encoding="utf-8"))
    names = [probe["name"] for probe in found["probes"]]
    print(
        f"# SFT, then DPO: {base}, {seconds:.0f} s, {torch.get_num_threads()} threads\n"
    )
    print("| row | " + " | ".join(PREFERENCE) + " |")
    print("|---|" + "---|" * len(PREFERENCE))
    for row, values, errors in zip(
        found["rows"], found["R"], found["stderr"], strict=True
    ):
        cells = [
            f"{values[names.index(n)]:.4f} ± {errors[names.index(n)]:.4f}"
            for n in PREFERENCE
        ]
        print(f"| {row['name']} | " + " | ".join(cells) + " |")
    print("\n| probe | from | to | before | after | change ± SE | in SE | p |")
    print("|---|---|---|---|---|---|---|---|")
    for change in found["changes"]:
        if change["to"] == "dpo":
            print(_changed(change))
    print("\n| text | KL(model ‖ base), nats per token | SE over texts |")
    print("|---|---|---|")
    for name, (mean, error) in divergences(run, base).items():
        print(f"| {name} | {mean:.3g} | {error:.2g} |")


def _changed(change: dict[str, Any]) -> str:
    error = change["stderr"]
    sizes = f"{change['change'] / error:+.1f}" if error else "–"
    figures = [f"{change[k]:.4f}" for k in ("before", "after")]
    return (
        f"| {change['probe']} | {change['from']} | {change['to']} | {figures[0]} | {figures[1]} |"
        f" {change['change']:+.4f} ± {error:.4f} | {sizes} | {change['p']:.2g} |"
    )


def divergences(run: Path, base: str) -> dict[str, tuple[float, float]]:
    """Return text → (mean KL(model ‖ base) per token, its standard error over texts)."""
    before, after = (
        mgk.load_base("hf", id=place, device="cpu", compute="float32")
        for place in (base, str(run / "model"))
    )
    pairs = mgk.load_data(
        before, "preference", train=f"{DATA}train.jsonl", test=f"{DATA}test.jsonl",
        base_probes={"ko": f"{TEXTS}probe_ko.jsonl", "en": f"{TEXTS}probe_en.jsonl"},
    )  # fmt: skip
    found = {}
    for probe in pairs.probes:
        if probe.name in {"preference", "ko", "en"}:
            name = (
                "held-out chosen answers"
                if probe.name == "preference"
                else f"base-{probe.name}"
            )
            found[name] = _spread(
                [_kl(before, after, _example(i)) for i in probe.items[:KL_TEXTS]]
            )
    return found


def _example(item: Choice | Tokens) -> Tokens:
    """Return a pair's chosen answer as an example; a text as it is."""
    if isinstance(item, Tokens):
        return item
    answer = item.options[item.answer]
    return Tokens((*item.prompt, *answer), (*(-100,) * len(item.prompt), *answer))


@torch.no_grad()
def _kl(before: Bundle, after: Bundle, example: Tokens) -> float:
    """Return the mean over an example's learned tokens of KL(after ‖ before), in nats."""
    own, other = (b.predictions(b.pack([example])) for b in (after, before))  # type: ignore[attr-defined]

    def part(rows: slice) -> torch.Tensor:
        return divergence(own.logits(rows), other.logits(rows), 1.0)

    return float(by_rows(part, len(own.tokens)).mean())


def _spread(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    squares = math.fsum((v - mean) ** 2 for v in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))


if __name__ == "__main__":
    main()
