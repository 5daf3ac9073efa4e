"""What a suite costs the base: texts and questions that no task teaches, and the KL divergence from the base."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional

import mgk
from mgk_bench.folder import VARIABLE
from mgk_bench.texts import Examples, TextTask, item_scores
from mgk_core.contract.bundle import Batch, Choice, Speaks, Tokens

PIPELINE = "korean-medical"
QUESTIONS = 100
SHOWN, POSITIONS = 2, 24  # texts of each probe, and positions of each, for the KL


@frozen(eq=False)
class Untaught:
    """Probes of the base. calibration: texts that represent what the base knew, for methods that use some."""

    tasks: tuple[TextTask, ...]
    calibration: tuple[Batch, ...]
    shown: tuple[Tokens, ...]

    def scores(self, bundle: Speaks) -> dict[str, float]:
        """Return probe → mean score: accuracy of questions, nats per token of texts."""
        found = {}
        for task in self.tasks:
            values = item_scores(bundle, task)
            found[task.name] = math.fsum(values) / len(values)
        return found

    @torch.no_grad()
    def outputs(self, bundle: Speaks) -> Tensor:
        """Return log-probabilities on a few positions of the base's texts, (positions, vocabulary)."""
        found = []
        for tokens in self.shown:
            first = torch.arange(1, min(len(tokens.ids), POSITIONS + 1))
            logits = bundle.outputs(bundle.pack([tokens]), first.to(bundle.device))
            found.append(logits.float().log_softmax(-1).cpu())
        return torch.cat(found)


def kl(before: Tensor, after: Tensor) -> float:
    """Mean over positions of KL(base ‖ model) = Σ p_base (log p_base − log p_model), nats. (positions, vocabulary)."""
    total = functional.kl_div(after, before, reduction="sum", log_target=True)
    return float(total) / len(before)


def load_untaught(bundle: Speaks) -> Untaught:
    """Load the base's probes and calibration text of the shipped pipeline, and MMLU's medical questions if there."""
    options: Mapping[str, object] = mgk.pipeline(PIPELINE).phases[0].data
    first = {**options, "limit": 8, "dev": (), "test": (), "test_share": 0.5}
    data = mgk.load_data(bundle, **first)  # type: ignore[arg-type]
    tasks, shown = [], []
    for probe in data.probes:
        if probe.phase != "base":
            continue
        items = tuple(Choice(t.ids[:1], (t.ids[1:],), 0) for t in probe.items)
        tasks.append(TextTask(probe.name, Examples(bundle, []), items, (), False))
        shown += list(probe.items[:SHOWN])
    if (questions := _mmlu(bundle)) is not None:
        tasks.append(questions)
    return Untaught(tuple(tasks), data.calibration, tuple(shown))


def _mmlu(bundle: Speaks) -> TextTask | None:
    """Return MMLU's medical questions from ``$MGK_REALDATA/mmlu``; None where they are not there."""
    root = os.environ.get(VARIABLE)
    files = sorted(Path(root, "mmlu").glob("*.csv")) if root else []
    rows = []
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            rows += [row for row in csv.reader(file) if len(row) == 6]
    if not rows:
        return None
    step = max(1, len(rows) // QUESTIONS)
    chosen = rows[::step][:QUESTIONS]
    talk = bundle.conversation.styled("auto")
    made = talk.options(
        [[{"role": "user", "content": row[0]}] for row in chosen],
        [row[1:5] for row in chosen],
    )
    items = tuple(
        Choice(o.prompt, o.answers, "ABCD".index(row[5].strip()))
        for o, row in zip(made, chosen, strict=True)
    )
    return TextTask("mmlu", Examples(bundle, []), items, (), True)
