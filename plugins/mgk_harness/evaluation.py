"""Metric family ``lm-eval``: the harness evaluates its task, and mgk keeps every document's value."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any, cast

from lm_eval.evaluator import evaluate as run_harness

from mgk_core.contract.bundle import Bundle, Probe, Score, Speaks
from mgk_core.contract.errors import InputError
from mgk_harness.model import BundleModel
from mgk_harness.quiet import quiet
from mgk_harness.tasks import Document, Harness, documents_of

DRAWS = 100
"""Bootstrap samples of a figure that is not a mean over documents."""


def evaluate(bundle: Bundle, probe: Probe) -> Score:
    """Evaluate a task's documents. extra: the task's other figures, with their filter.

    per_item: each document's value where the figure is their mean; otherwise empty, and the
    standard error comes from a bootstrap over documents.
    """
    items: Sequence[Document] = probe.items
    harness = items[0].harness
    documents = documents_of(items)
    tasks = {name: harness.tasks[name] for name in documents}
    for task in tasks.values():
        task.set_fewshot_seed(seed=harness.seed)
    with quiet():
        result: Any = run_harness(
            BundleModel(cast("Speaks", bundle), greedy=_reads_greedy(tasks.values())),
            {"tasks": tasks},
            samples=documents,
            bootstrap_iters=0,  # the harness would fork a pool of processes for it
            apply_chat_template=harness.chat,
            fewshot_as_multiturn=True,
        )
    found = _values(result, harness, items)
    own = result["results"][items[0].task]
    key = f"{harness.metric},{harness.filter}"
    values = tuple(map(float, found)) if harness.pooled else ()
    value = math.fsum(values) / len(values) if values else float(own[key])
    spread = _stderr(values) if values else _drawn(tasks[items[0].task], harness, found)
    return Score(
        probe=probe.name,
        metric=probe.metric,
        value=value,
        n=len(items),
        stderr=spread,
        higher_is_better=probe.higher_is_better,
        per_item=values,
        extra=_others(own, key) if len(tasks) == 1 else {},
    )


def _reads_greedy(tasks: Any) -> bool:
    """Whether any task reads which continuation is the likeliest."""
    return any(
        task.OUTPUT_TYPE == "loglikelihood" or "exact_match" in task.aggregation()
        for task in tasks
        if task.OUTPUT_TYPE != "generate_until"
    )


def _values(result: Any, harness: Harness, items: Sequence[Document]) -> list[Any]:
    """Return what each document contributes to the figure, in the order of the items."""
    found: dict[tuple[str, int], Any] = {}
    for task, samples in result["samples"].items():
        for sample in samples:
            if sample["filter"] == harness.filter:
                found[task, sample["doc_id"]] = sample[harness.metric]
    try:
        return [found[item.task, item.number] for item in items]
    except KeyError as error:
        raise InputError(
            f"lm-evaluation-harness gave no {harness.metric!r} for document {error}"
        ) from None


def _others(own: dict[str, Any], key: str) -> dict[str, float]:
    """Return a task's further figures."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in own.items()
        if name != key and "," in name and isinstance(value, (int, float))
    }


def _drawn(task: Any, harness: Harness, values: Sequence[Any]) -> float:
    """Standard error of a figure that is not a mean: its standard deviation over resampled documents."""
    figure = task.aggregation()[harness.metric]
    draw = random.Random(harness.seed)  # noqa: S311 - a bootstrap, not a secret
    draws = [float(figure(draw.choices(values, k=len(values)))) for _ in range(DRAWS)]
    return statistics.stdev(draws)


def _stderr(values: Sequence[float]) -> float:
    """Sample standard deviation / √n; NaN for n = 1."""
    n = len(values)
    if n < 2:
        return math.nan
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
