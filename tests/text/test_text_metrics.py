"""Metrics of generated answers, of options' probabilities, and the divergence from the untouched base."""

import importlib.util
import json
import math

import pytest
import torch

pytest.importorskip("rouge_score", reason="pip install 'mgk[metrics]'")
pytest.importorskip("sacrebleu", reason="pip install 'mgk[metrics]'")

from mgk_core.contract.bundle import Choice, Probe
from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_core.contract.specs import SpecRegistry
from mgk_text import divergence, generation, similarity
from mgk_text.load import load
from mgk_text.plugin import mgk_register_specs
from mgk_text.specs import SPECS
from mgk_validation.calibration import calibration_error, confidence
from mgk_validation.options import option_metric

PAIRS = [
    ("당뇨병은 혈당이 높은 병이다.", "당뇨병은 혈당이 높은 상태가 계속되는 병이다."),
    ("심장은 피를 보낸다", "심장은 피를 보낸다."),
    ("the heart pumps blood", "The heart pumps the blood"),
    ("", "간은 해독을 맡는다"),
    ("전혀 다른 말", "폐렴은 염증이다"),
]
TOPICS = "가나다라마바사아"


@pytest.mark.parametrize(("text", "wanted"), PAIRS)
def test_figures_are_those_of_the_libraries(text, wanted):
    """chrF and BLEU equal sacrebleu's; Rouge-L equals rouge-score's on words of any script."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    assert similarity.comparison("chrf")(text, wanted) == pytest.approx(
        sacrebleu.sentence_chrf(text, [wanted]).score
    )
    assert similarity.comparison("bleu")(text, wanted) == pytest.approx(
        sacrebleu.sentence_bleu(text, [wanted], use_effective_order=True).score
    )
    # The library's own tokenizer keeps a to z alone, so each word is given as a latin one.
    known: dict[str, str] = {}
    latin = [
        " ".join(known.setdefault(w, f"w{len(known)}") for w in similarity.words(t))
        for t in (wanted, text)
    ]
    theirs = RougeScorer(["rougeL"]).score(*latin)["rougeL"].fmeasure
    assert similarity.comparison("rouge_l")(text, wanted) == pytest.approx(theirs)


def test_corpus_figures_are_those_of_sacrebleu():
    """The figure over all answers is sacrebleu's corpus score, which is not the mean."""
    import sacrebleu

    texts, wanted = zip(*PAIRS, strict=True)
    for metric, theirs in (
        ("chrf", sacrebleu.corpus_chrf),
        ("bleu", sacrebleu.corpus_bleu),
    ):
        found = similarity.over_all(metric, texts, wanted)
        assert found["corpus"] == pytest.approx(
            theirs(list(texts), [list(wanted)]).score
        )
    assert similarity.over_all("token_f1", texts, wanted) == {}


def test_exact_match_and_token_f1():
    """Case, punctuation and spaces do not count; F1 is over words with their number."""
    assert similarity.exact_match("심장은  피를 보낸다!", "심장은 피를 보낸다") == 1
    assert similarity.exact_match("심장은 피를", "심장은 피를 보낸다") == 0
    # 3 shared words (one of the two "a" has no partner); 4 here, 5 there.
    assert similarity.token_f1("a a b c", "a b c d e") == pytest.approx(2 * 3 / 9)
    assert similarity.token_f1("", "") == 1
    assert similarity.token_f1("", "a") == 0


def test_a_missing_library_names_the_extra(monkeypatch):
    """What is not installed is known when the data are loaded, with what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match=r"mgk\[metrics\]"):
        similarity.require("rouge_l")
    similarity.require("token_f1")


def test_every_metric_is_registered():
    """A metric that a spec may name is one that a plugin answers for."""
    registry = SpecRegistry()
    registry.plugin = "text"
    mgk_register_specs(registry)
    assert {*similarity.NAMES, "generation", "kl_to_base"} <= set(
        registry.types("metric")
    )


@pytest.fixture
def questions(write):
    rows = [
        {"question": f"{c}는?", "options": [f"{c}하나", f"{c}둘"], "answer": i % 2}
        for i, c in enumerate(TOPICS)
    ]
    return write("q.jsonl", rows)


def test_probes_of_one_row_share_their_answers(questions, bundle, monkeypatch):
    """The model writes once for all metrics of a row; a further metric changes nothing else."""
    spec = SPECS["mcq"](
        type="mcq", train=questions, test=questions, generate=3, new_tokens=6,
        answers="0", metrics=("chrf", "exact_match", "option_calibration"), cache=False,
    )  # fmt: skip
    probes = {p.name: p for p in load(spec, bundle).probes}
    assert set(probes) == {
        "mcq", "mcq-margin", "mcq-accuracy", "mcq-generated", "mcq-chrf",
        "mcq-exact-match", "mcq-calibration",
    }  # fmt: skip
    calls = []
    real = type(bundle).generate
    monkeypatch.setattr(
        type(bundle), "generate", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    scores = [
        generation.evaluate(bundle, probes[name])
        for name in ("mcq-generated", "mcq-chrf", "mcq-exact-match")
    ]
    assert len(calls) == 1
    assert [s.metric for s in scores] == ["generation", "chrf", "exact_match"]
    assert scores[0].answers
    again = generation.evaluate(bundle, probes["mcq-chrf"])
    assert len(calls) == 2
    assert again == scores[1]
    items = probes["mcq-chrf"].items
    texts = [answer.text for answer in scores[0].answers]
    compare = similarity.comparison("chrf")
    expected = [compare(t.strip(), i.wanted) for t, i in zip(texts, items, strict=True)]
    assert list(scores[1].per_item) == expected


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("mcq", {"metrics": ("chfr",)}, "chrf"),
        ("mcq", {"metrics": ("chrf",), "generate": 0}, "generate"),
        ("chat", {"metrics": ("option_calibration",)}, "options"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused(kind, options, word):
    """An unknown metric, one without answers, and one without options are errors of the spec."""
    with pytest.raises(ValueError, match=word):
        SPECS[kind](type=kind, **options)


def test_calibration_by_hand():
    """Two bins: sure and wrong, unsure and right; the gaps are weighed by their items."""
    wrong = confidence([math.log(0.95), math.log(0.05)], answer=1)
    right = confidence([math.log(0.6), math.log(0.4)], answer=0)
    assert wrong.probability == pytest.approx(0.95)
    assert not wrong.right
    error, stderr = calibration_error([wrong, right])
    assert error == pytest.approx((0.95 + 0.4) / 2)
    assert stderr > 0


def test_calibration_of_a_models_options(bundle):
    """The figure of a probe is that of the option scores of the bundle."""
    items = [Choice((2, i), ((i + 1, 5), (i + 2, 7, 9)), i % 2) for i in range(6, 16)]
    probe = Probe("c", "", "option_calibration", tuple(items), higher_is_better=False)
    found = option_metric(bundle, probe)
    sure = []
    for item, scores in zip(items, bundle.score(items), strict=True):
        p = torch.softmax(torch.tensor(scores.logprob, dtype=torch.float64), 0)
        sure.append((float(p.max()), int(p.argmax()) == item.answer))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, right in sure:
        bins.setdefault(min(int(p * 10), 9), []).append((p, right))
    gaps = [abs(sum(r - p for p, r in group)) for group in bins.values()]
    assert found.value == pytest.approx(sum(gaps) / len(items))
    assert found.n == len(items)
    assert found.per_item == ()


@pytest.fixture
def texts(write):
    return write("t.jsonl", [{"text": f"{c}에 대한 글이다. " * 3} for c in TOPICS])


def test_divergence_is_zero_on_the_base_and_exact_after_a_change(texts, bundle):
    """KL(base ‖ model) is 0 on the base; after a change it is the sum over the vocabulary, in nats."""
    spec = SPECS["text"](
        type="text", train=texts, test=texts, kl_items=3, cache=False, length=64
    )
    probe = next(p for p in load(spec, bundle).probes if p.name == "text-kl")
    assert (probe.phase, probe.metric, len(probe.items)) == ("base", "kl_to_base", 3)
    assert divergence.divergence(bundle, probe).value == pytest.approx(0, abs=1e-7)
    head = bundle.model.get_output_embeddings().weight
    kept = head.detach().clone()
    try:
        with torch.no_grad():
            noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(1))
            head.add_((0.05 * noise).to(head.dtype))
        score = divergence.divergence(bundle, probe)
        values = []
        for item in probe.items:
            batch = bundle.pack([item.example])
            logits = bundle.outputs(batch, torch.tensor(item.positions)).double()
            q, p = torch.log_softmax(logits, -1), item.base.double()
            values.append(float((p.exp() * (p - q)).sum(-1).mean()))
    finally:
        with torch.no_grad():
            head.copy_(kept)
    assert min(values) > 1e-4
    assert list(score.per_item) == pytest.approx(values, rel=1e-3)
    assert score.value == pytest.approx(sum(values) / 3, rel=1e-3)


def test_divergence_needs_test_data(texts, bundle):
    """Without test data there is nothing to measure on, and that is an error."""
    spec = SPECS["text"](type="text", train=texts, kl_items=3, cache=False)
    with pytest.raises(InputError, match="kl_items"):
        load(spec, bundle)


def test_keep_base_reads_a_divergence_as_a_share():
    """0.1 nats per token keep e^−0.1 of the base's probability; max-drop leaves it alone."""
    from mgk_core.contract.bundle import Score
    from mgk_validation.compare import Change
    from mgk_validation.gates import share_kept

    def score(value):
        return Score("kl", "kl_to_base", value, 4, 0.01, higher_is_better=False)

    assert share_kept(Change(score(0.0), score(0.1))) == pytest.approx(math.exp(-0.1))


def test_metrics_are_json(questions, bundle):
    """What a probe measured can be written as a row of the matrix."""
    spec = SPECS["mcq"](
        type="mcq", train=questions, test=questions, generate=2, new_tokens=4,
        answers="0", metrics=similarity.NAMES, cache=False,
    )  # fmt: skip
    probes = [p for p in load(spec, bundle).probes if p.metric in similarity.NAMES]
    for probe in probes:
        found = generation.evaluate(bundle, probe)
        json.dumps([found.value, found.per_item, dict(found.extra)])
        assert found.n == 2
