"""The scores of one row as a small table, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mgk_cli import formatting as fmt
from mgk_cli.tables import GAP, aligned

Scores = Mapping[str, Mapping[str, Any]]
LONGEST = 28  # cells of a probe's name


def score_lines(
    name: str, before: Mapping[str, float], scores: Scores, width: int
) -> Iterator[str]:
    """Yield a table of scores: probes across if they fit the width, else one line per probe.

    :param name: of the row
    :param before: probe → value in the row before; empty for the baseline
    :param scores: probe → score as in the ``evaluation`` event
    """
    values = [fmt.number(s["value"]) for s in scores.values()]
    across = aligned([["scores", *map(fmt.clean, scores)], [name, *values]])
    if max(map(fmt.cells, across), default=0) <= width:
        yield from across
        return
    yield from aligned(_one_per_line(name, before, scores, width))


def _one_per_line(
    name: str, before: Mapping[str, float], scores: Scores, width: int
) -> Iterator[Sequence[str]]:
    longest = min(LONGEST, max(8, width - 3 * (10 + GAP)))
    if not before:
        yield "scores", name
    else:
        yield "scores", "before", "after", "better by"
    for probe, score in scores.items():
        label = fmt.shorten(fmt.clean(probe), longest)
        if not before:
            yield label, fmt.number(score["value"])
            continue
        old = before.get(probe)
        gain = None if old is None else _better_by(score, old)
        yield label, fmt.number(old), fmt.number(score["value"]), fmt.signed(gain)


def _better_by(score: Mapping[str, Any], before: float) -> float:
    change = float(score["value"]) - before
    return change if score["higher_is_better"] else -change
