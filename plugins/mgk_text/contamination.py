"""Training rows that share text with what the probes ask: listed, dropped, or refused.

A row is contaminated if it shares a run of ``words`` words with a held-out row (as for GPT-3, Brown
et al. 2020, arXiv 2005.14165, appendix C, with 13 words), or, if it is shorter, all its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import frozen

from mgk_core.contract.errors import DataError, Problem
from mgk_text.problems import several, summary, verb
from mgk_text.records import Record

_WORD = re.compile(r"\w+")
_SHOWN = 3


@frozen
class Overlap:
    """A training row and the held-out row that it shares words with."""

    row: Record
    held: Record
    words: str

    def __str__(self) -> str:
        return f"{self.row.place} shares “{self.words[:60]}” with {self.held.place}"


def overlaps(
    train: Sequence[Record], held: Sequence[Record], words: int
) -> list[Overlap]:
    """Return the contaminated training rows, each once, in their order."""
    asked: dict[str, Record] = {}
    for record in held:
        for run in _runs(record, words):
            asked.setdefault(run, record)
    found = list[Overlap]()
    for row in train:
        shared = next((run for run in _runs(row, words) if run in asked), None)
        if shared is not None:
            found.append(Overlap(row, asked[shared], shared))
    return found


def _runs(record: Record, count: int) -> Iterator[str]:
    words = _WORD.findall(record.words.casefold())
    if not words:
        return
    for start in range(max(1, len(words) - count + 1)):
        yield " ".join(words[start : start + count])


def note(found: Sequence[Overlap], *, dropped: bool, count: int | None = None) -> str:
    """Return how many rows are contaminated, with the first places.

    count: where only some of them are given
    """
    total = len(found) if count is None else count
    rows = several(total, "train row")
    what = f"{rows} {verb(total, 'share')} text with held-out rows"
    shown = "; ".join(map(str, found[:_SHOWN])) + (" …" if total > _SHOWN else "")
    if dropped:
        return f"contamination: {what}; dropped: {shown}"
    return f"contamination: {what}, so their probes also measure memory: {shown}"


def refusal(found: Sequence[Overlap]) -> DataError:
    """Return the error for ``contamination = "refuse"``."""
    advice = "remove the row, or set contamination to note or drop"
    problems = []
    for one in found:
        message = f"shares “{one.words[:60]}” with {one.held.place}; {advice}"
        problems.append(Problem("contamination", message, one.row.place))
    return DataError(summary(problems))
