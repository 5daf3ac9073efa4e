"""Figures of a generated answer beside the answer that was wanted, one by one and over all.

Exact match and token F1 as SQuAD defines them (Rajpurkar et al. 2016, arXiv 1606.05250), case, punctuation and
repeated spaces aside. Rouge-L, chrF and BLEU are those of ``rouge-score`` and ``sacrebleu``.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mgk_core.contract.errors import EnvironmentFault

Compare = Callable[[str, str], float]
"""(answer, wanted answer) → figure."""

LIBRARIES = {"rouge_l": "rouge_score", "chrf": "sacrebleu", "bleu": "sacrebleu"}
SUMMARIES = {
    "exact_match": "share of generated answers equal to the wanted one",
    "token_f1": "F1 over words of generated answers",
    "rouge_l": "Rouge-L (F-measure) of generated answers, over words of any script",
    "chrf": "chrF of generated answers, 0 to 100, mean over answers",
    "bleu": "BLEU of generated answers, 0 to 100, mean over answers",
}
NAMES = tuple(SUMMARIES)


def require(metric: str) -> None:
    """Raise `EnvironmentFault` if the library of a metric is not installed."""
    library = LIBRARIES.get(metric)
    if library is not None and importlib.util.find_spec(library) is None:
        raise EnvironmentFault(
            f"metric {metric!r} needs {library}: pip install 'mgk[metrics]'"
        )


def comparison(metric: str) -> Compare:
    """Return what compares a single answer with the wanted one."""
    if metric == "exact_match":
        return exact_match
    if metric == "token_f1":
        return token_f1
    if metric == "rouge_l":
        return _rouge_l()
    score = _sacrebleu(metric).sentence_score
    return lambda text, wanted: float(score(text, [wanted]).score)


def over_all(
    metric: str, texts: Sequence[str], wanted: Sequence[str]
) -> dict[str, float]:
    """Return the figure over all answers where it is not the mean: ``corpus`` of chrF and BLEU."""
    if metric not in ("chrf", "bleu"):
        return {}
    found = _sacrebleu(metric, corpus=True).corpus_score(list(texts), [list(wanted)])
    return {"corpus": float(found.score)}


def exact_match(text: str, wanted: str) -> float:
    """1 if the words are the same, otherwise 0."""
    return float(words(text) == words(wanted))


def token_f1(text: str, wanted: str) -> float:
    """F1 over words: 2 · shared / (words here + words there)."""
    one, other = words(text), words(wanted)
    if not one or not other:
        return float(one == other)
    shared = Counter(one) & Counter(other)
    return 2 * shared.total() / (len(one) + len(other))


def words(text: str) -> list[str]:
    """Split a text of any script into words, without punctuation and case."""
    plain = unicodedata.normalize("NFC", text).casefold()
    return re.findall(r"\w+", plain)


class _Words:
    """A tokenizer for ``rouge-score``, whose own one drops every letter that is not a to z."""

    def tokenize(self, text: str) -> list[str]:
        """Return a text's words."""
        return words(text)


def _rouge_l() -> Compare:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return lambda text, wanted: float(scorer.score(wanted, text)["rougeL"].fmeasure)


def _sacrebleu(metric: str, *, corpus: bool = False) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # A short answer has no 4-grams; sacrebleu counts the orders that exist, sentence by sentence only.
    return CHRF() if metric == "chrf" else BLEU(effective_order=not corpus)
