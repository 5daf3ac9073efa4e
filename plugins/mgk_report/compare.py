"""Several runs side by side: which settings differ, and which final scores differ beyond noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from mgk_report.matrix import NOISE
from mgk_report.record import Run


@frozen
class Difference:
    """One setting, or one probe, over the runs; values in the order of the runs."""

    name: str
    values: Sequence[str]
    beyond_noise: bool = False


def settings(runs: Sequence[Run]) -> list[Difference]:
    """Return the settings that are not the same in all runs."""
    tables = [{s.key: s.value for s in run.settings} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = []
    for key in keys:
        values = [table.get(key, "–") for table in tables]
        if len(set(values)) > 1:
            found.append(Difference(key, values))
    return found


def scores(runs: Sequence[Run]) -> list[Difference]:
    """Return each probe's final score in every run, compared with the first run item by item."""
    finals = [_final(run) for run in runs]
    found = []
    for probe in dict.fromkeys(name for final in finals for name in final):
        row = [final.get(probe) for final in finals]
        first = row[0]
        values = [
            "–" if s is None else f"{s['value']:.4g} ± {s['stderr']:.2g}" for s in row
        ]
        differ = [s for s in row[1:] if s and first and beyond_noise(first, s)]
        found.append(Difference(probe, values, bool(differ)))
    return found


def _final(run: Run) -> Mapping[str, Mapping[str, Any]]:
    """Return probe → score of the last row that was committed."""
    rows = [run.scores, *(p.scores for p in run.phases if p.result == "committed")]
    return {score["probe"]: score for score in rows[-1]}


def beyond_noise(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two scores differ by more than twice their error: paired where the items are the same."""
    if len(a["per_item"]) == len(b["per_item"]) > 1:
        gaps = [y - x for x, y in zip(a["per_item"], b["per_item"], strict=True)]
        mean, error = (
            statistics.fmean(gaps),
            statistics.stdev(gaps) / math.sqrt(len(gaps)),
        )
    else:
        mean, error = b["value"] - a["value"], math.hypot(a["stderr"], b["stderr"])
    return bool(abs(mean) > NOISE * error)
