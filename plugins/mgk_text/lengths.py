"""Lengths: a report before training, and what happens to examples that are too long."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from attrs import frozen

from mgk_core.contract.bundle import Tokens
from mgk_core.contract.errors import DataError, Problem
from mgk_text.problems import several, summary


@frozen
class Fitted:
    """Examples that fit, and a sentence for the report."""

    examples: tuple[Tokens, ...]
    note: str


def fit(
    examples: Sequence[Tokens],
    limit: int,
    overflow: str,
    *,
    what: str,
    places: Sequence[str],
    key: str = "max_length",
    head: int = 1,
) -> Fitted:
    """Bring examples down to ``limit`` tokens; nothing is ever cut off silently.

    :param overflow: ``split`` (plain text only), ``drop``, ``truncate``, or ``error``: one
        `DataError` names the rows
    :param what: what the examples are, for the report
    :param places: file and line of each example
    :param key: the setting that the limit comes from
    :param head: as `split` takes it
    """
    long = [i for i, e in enumerate(examples) if len(e.ids) > limit]
    note = report(examples, what)
    if not long:
        return Fitted(tuple(examples), f"{note}; none over {key} {limit}")
    if overflow == "error":
        advice = f"tokens, and {key} is {limit}; raise it, or set overflow"
        problems = (
            Problem("", f"{len(examples[i].ids)} {advice}", places[i]) for i in long
        )
        raise DataError(summary(problems))
    chosen = set(long)
    if overflow == "drop":
        kept = tuple(e for i, e in enumerate(examples) if i not in chosen)
        return Fitted(kept, f"{note}; {len(long)} over {key} {limit} dropped")
    if overflow == "truncate":
        return _truncated(
            examples, limit, f"{note}; {len(long)} over {key} {limit} truncated"
        )
    parts = [
        p
        for i, e in enumerate(examples)
        for p in (split(e, limit, head) if i in chosen else [e])
    ]
    return Fitted(
        tuple(parts),
        f"{note}; {len(long)} over {key} {limit} split, {len(parts)} pieces in all",
    )


def _truncated(examples: Sequence[Tokens], limit: int, note: str) -> Fitted:
    """Cut the ends off, and count what is no longer learnt; examples that teach nothing go."""
    cut = [truncated(e, limit) for e in examples]
    kept = tuple(e for e in cut if learnt_in(e))
    lost = sum(learnt_in(e) for e in examples) - sum(learnt_in(e) for e in kept)
    gone = len(cut) - len(kept)
    return Fitted(
        kept, f"{note}: {lost:,} learnt tokens lost, {gone:,} examples left with none"
    )


def truncated(example: Tokens, limit: int) -> Tokens:
    """Return an example's first ``limit`` tokens; its bytes in proportion to what is still learnt."""
    if len(example.ids) <= limit:
        return example
    short = Tokens(example.ids[:limit], example.labels[:limit])
    share = learnt_in(short) / max(1, learnt_in(example))
    return Tokens(short.ids, short.labels, round(example.nbytes * share))


def learnt_in(example: Tokens) -> int:
    """Return how many tokens of an example are learnt."""
    return sum(label != -100 for label in example.labels)


def split(example: Tokens, limit: int, head: int) -> list[Tokens]:
    """Split a plain text into pieces of at most ``limit`` tokens, its beginning token before each.

    Bytes are shared out by length: their sum stays what it was.

    :param head: 1 where the text begins with a beginning token, 0 where the tokenizer has none
    """
    body, size = example.ids[head:], limit - head
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    ends = [
        round(example.nbytes * min(i + size, len(body)) / len(body))
        for i in range(0, len(body), size)
    ]
    counts = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    whole = [(*example.ids[:head], *part) for part in parts]
    return [
        Tokens(ids, (-100, *ids[1:]), count)
        for ids, count in zip(whole, counts, strict=True)
    ]


def report(examples: Sequence[Tokens], what: str) -> str:
    """Return a sentence on how long examples are."""
    if not examples:
        return f"{what}: none"
    lengths = sorted(len(e.ids) for e in examples)
    learnt = sum(learnt_in(e) for e in examples)
    high = lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))]
    return (
        f"{what}: {several(len(lengths), 'example')}, {several(sum(lengths), 'token')},"
        f" {learnt:,} of them learnt;"
        f" tokens each: median {statistics.median(lengths):.0f}, 95 % up to {high}, longest {lengths[-1]}"
    )
