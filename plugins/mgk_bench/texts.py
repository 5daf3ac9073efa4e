"""A suite's rows as what a language model trains on, and how good it is at them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from attrs import define, evolve, field, frozen

from mgk_bench.folder import Row, TaskRows
from mgk_core.contract.bundle import Batch, Choice, OptionScores, Speaks, Tokens
from mgk_core.contract.conversation import Message
from mgk_core.contract.errors import EnvironmentFault, InputError

SCORED = 32
"""Items that are scored at once."""


@define(eq=False)
class Examples:
    """Training examples by row."""

    bundle: Speaks
    examples: Sequence[Tokens]
    digest: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        ids = [(e.ids, e.labels) for e in self.examples]
        self.digest = hashlib.sha256(repr(ids).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows, in the order given."""
        return self.bundle.pack([self.examples[row] for row in rows])


@frozen(eq=False)
class TextTask:
    """One task as tokens. references: the right answers of the test rows, as text."""

    name: str
    train: Examples = field(repr=False)
    items: tuple[Choice, ...] = field(repr=False)
    references: tuple[str, ...] = field(repr=False)
    classifies: bool


def _chat(row: Row) -> list[Message]:
    return [
        {"role": "user", "content": row.prompt},
        {"role": "assistant", "content": row.output},
    ]


def encode(bundle: Speaks, rows: TaskRows, tokens: int) -> TextTask:
    """Make one task's tokens. tokens: most tokens of an example; the input is cut at its end to fit.

    :raises InputError: some rows have labels and others not
    """
    train = [fit(bundle, row, tokens) for row in rows.train]
    test = [fit(bundle, row, tokens) for row in rows.test]
    kinds = {bool(row.labels) for row in (*train, *test)}
    if len(kinds) > 1:
        raise InputError(
            f"task {rows.name}: some rows have labels and others have none"
        )
    talk = bundle.conversation.styled("auto")
    examples = [e for chat in talk.exchanges([_chat(r) for r in train]) for e in chat]
    answers = [row.labels or (row.output,) for row in test]
    options = talk.options([_chat(row)[:1] for row in test], answers)
    items = tuple(
        Choice(o.prompt, o.answers, a.index(row.output))
        for o, a, row in zip(options, answers, test, strict=True)
    )
    references = tuple(row.output for row in test)
    return TextTask(
        rows.name, Examples(bundle, examples), items, references, kinds == {True}
    )


def fit(bundle: Speaks, row: Row, tokens: int) -> Row:
    """Cut the end of a row's input, then of its output, until the example has at most so many tokens.

    :raises InputError: the instruction alone is longer
    """
    talk = bundle.conversation.styled("auto")
    while (length := len(talk.exchanges([_chat(row)])[0][0].ids)) > tokens:
        share = (length - tokens) / length
        longest = "input" if row.input else "output"
        text = getattr(row, longest)
        if not text or (longest == "output" and row.labels):
            raise InputError(
                f"an example takes {length} tokens without its input; expected at most --tokens {tokens}:"
                f" {row.instruction[:60]!r}"
            )
        keep = len(text) - max(1, math.floor(share * len(text)))
        row = evolve(row, **{longest: text[:keep]})
    return row


@torch.no_grad()
def item_scores(bundle: Speaks, task: TextTask) -> tuple[float, ...]:
    """Return each test row's score.

    Classification: 1 where the right label has the highest log-likelihood per token, else 0. Free
    text: log-likelihood of the reference answer, nats per token.
    """
    found: list[OptionScores] = []
    for start in range(0, len(task.items), SCORED):
        found += bundle.score(task.items[start : start + SCORED])
    return tuple(_score(i, s) for i, s in zip(task.items, found, strict=True))


def _score(item: Choice, scores: OptionScores) -> float:
    each = [p / n for p, n in zip(scores.logprob, scores.tokens, strict=True)]
    if len(each) == 1:
        return each[0]
    wrong = max(v for i, v in enumerate(each) if i != item.answer)
    return float(each[item.answer] > wrong)


def rouge_l(bundle: Speaks, task: TextTask, count: int, at_most: int = 64) -> float:
    """Mean Rouge-L of generated answers (F1 with Porter's stemmer, 0 to 100; Lin 2004), as Super-NI scores it.

    :param count: of the task's first test rows
    :param at_most: most tokens of an answer; fewer where no reference answer is longer
    """
    scorer = rouge_scorer()
    items, references = task.items[:count], task.references[:count]
    longest = max(len(item.options[item.answer]) for item in items)
    made: list[list[int]] = []
    for start in range(0, len(items), SCORED):
        prompts = [item.prompt for item in items[start : start + SCORED]]
        made += bundle.generate(prompts, max_new_tokens=min(at_most, longest + 4))
    texts = [bundle.conversation.read(ids) for ids in made]
    scores = [
        scorer.score(reference, text)["rougeL"].fmeasure
        for reference, text in zip(references, texts, strict=True)
    ]
    return 100 * math.fsum(scores) / len(scores)


def require_rouge() -> None:
    """Refuse to begin what would end in an import error.

    :raises EnvironmentFault: rouge-score is not installed
    """
    if find_spec("rouge_score") is None:
        raise EnvironmentFault(
            "Rouge-L needs rouge-score; install it: pip install 'mgk[bench]', or use --generate 0"
        )


def rouge_scorer() -> Any:
    """Return rouge-score's scorer."""
    require_rouge()
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
