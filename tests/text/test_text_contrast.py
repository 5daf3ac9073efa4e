"""Contrast: the right option against the wrong ones, as a term of the loss."""

import math

import pytest
import torch

from mgk_core.contract.bundle import Choice
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.sampling import Order
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_text.contrast import Contrast
from mgk_text.load import load
from mgk_text.specs import McqSpec
from mgk_text.trainset import QuestionRows

QUESTIONS = [
    {
        "question": f"{organ}의 병은?",
        "A": "폐렴",
        "B": "위염",
        "C": "뇌염",
        "D": "간염",
        "E": "신염",
        "answer": i % 5 + 1,
    }
    for i, organ in enumerate(("폐", "위", "뇌", "간", "신장", "허파", "밥통"))
]


@pytest.fixture(scope="module")
def base():
    """A tiny Gemma whose products are fp32, so that sums can be compared."""
    return build(
        HfSpec(type="hf", id="tiny-gemma", compute="float32", head="exact"),
        torch.device("cpu"),
    )


def spec(write, **options):
    return McqSpec(type="mcq", train=write("q.jsonl", QUESTIONS), generate=0, **options)


def test_option_scores_are_those_of_scoring_and_carry_a_gradient(base, write):
    """The mean log-likelihood per token, as `score` has it; its gradient is that of the sum of token losses."""
    choices = load(spec(write, contrast=1.0), base).train.choices
    found = base.option_logprobs(choices)
    expected = [
        p / n
        for s in base.score(choices)
        for p, n in zip(s.logprob, s.tokens, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    norm = base.model.get_submodule("model.norm").weight.requires_grad_()
    gradient = torch.autograd.grad(base.option_logprobs(choices[:1])[0], norm)[0]
    norm.requires_grad_(requires_grad=False)
    assert float(gradient.norm()) > 0


def test_the_term_is_the_softmax_over_a_questions_options(base, write):
    """−log softmax of the mean log-likelihoods at the right option, over the questions of the step, times its weight."""
    choices = load(spec(write, contrast=1.0), base).train.choices
    order = Order(len(choices), 3, seed=5)
    term = Contrast(base, choices, order, 0.5)
    for step in (0, 1, 2, 7):
        losses = []
        for row in order.rows(step):
            scores = base.score([choices[row]])[0]
            means = [p / n for p, n in zip(scores.logprob, scores.tokens, strict=True)]
            losses.append(
                math.log(sum(math.exp(m) for m in means)) - means[choices[row].answer]
            )
        assert float(term(step)) == pytest.approx(
            0.5 * sum(losses) / len(losses), rel=1e-4
        )


def test_questions_may_have_different_numbers_of_options(base):
    """A question with two options takes no share of the probability of options it does not have."""
    choices = (
        Choice((5, 6), ((7,), (8,)), 0),
        Choice((5, 6), ((7,), (8,), (9, 10)), 2),
    )
    both = float(Contrast(base, choices, Order(2, 2, 0), 1.0)(0))
    apart = [float(Contrast(base, (c,), Order(1, 1, 0), 1.0)(0)) for c in choices]
    assert both == pytest.approx(sum(apart) / 2, rel=1e-4)


def test_the_digest_covers_the_wrong_options(base, write):
    """Another wrong option is other data; where no contrast is asked and none is listed, it is not."""
    changed = [QUESTIONS[0] | {"E": "장염"}, *QUESTIONS[1:]]
    for contrast in (0.0, 1.0):
        bare = {
            "type": "mcq",
            "generate": 0,
            "show_options": False,
            "contrast": contrast,
        }
        same, other = (
            load(McqSpec(train=write(f"{n}.jsonl", rows), **bare), base).train.digest
            for n, rows in (("a", QUESTIONS), ("b", changed))
        )
        assert (same != other) == bool(contrast)


def test_only_a_contrast_asks_for_the_term(base, write):
    """Weight 0 offers no term and keeps plain rows; reasoning has no options to contrast."""
    from mgk_core.config.resolve import load_tree, resolve

    hooks = Hooks(load_plugins())
    for contrast, names in ((0.0, set()), (2.0, {"contrast"})):
        overrides = {
            "phases.mcq.data.contrast": contrast,
            "base.id": "tiny-gemma",
            "phases.mcq.retention.drift-guard": False,
        }
        config = resolve(
            load_tree("korean-medical", overrides=overrides), hooks.plugins.registry
        ).config
        phase = next(p for p in config.phases if p.name == "mcq")
        ctx = PhaseContext(
            config,
            phase,
            2,
            base,
            base.device,
            None,
            data=load(spec(write, contrast=contrast), base),
        )
        assert isinstance(ctx.data.train, QuestionRows) == bool(contrast)
        assert set(hooks.loss_terms(ctx)) == names
    with pytest.raises(ValueError, match="reasoning"):
        McqSpec(type="mcq", target="reasoning", contrast=1.0)


def test_a_base_without_such_gradients_is_told(base, write):
    """The message names the key and the mend."""
    from types import SimpleNamespace

    from mgk_text.contrast import contrast_term

    ctx = SimpleNamespace(data=None, bundle=object(), phase=SimpleNamespace(name="mcq"))
    with pytest.raises(InputError, match=r"phases.mcq.data.contrast: .* set it to 0"):
        contrast_term(ctx, spec(write, contrast=1.0))
