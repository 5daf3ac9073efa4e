"""A small Gemma, pairs and labelled answers to learn from, and training sets of them."""

import attrs
import torch

from mgk_core.contract.bundle import LabelledAnswer, PreferencePair, Tokens
from mgk_hf.bundle import HfBundle
from mgk_hf.network import take_apart
from mgk_hf.tiny import tiny_model, tiny_tokenizer

VOCABULARY = 320
IGNORED = -100
TEXTS = (
    "당뇨병은 혈당이 높은 상태가 오래 계속되는 대사 질환이다.",
    "The heart pumps blood.",
)
PROMPTS = ((2, 30, 31, 32, 33), (2, 40, 41), (2, 50, 51, 52, 53, 54, 55), (2, 60, 61))
GOOD = ((100, 101, 102, 1), (110, 111, 1), (120, 121, 122, 123, 124, 1), (130, 1))
BAD = (
    (200, 201, 1),
    (210, 211, 212, 213, 214, 215, 1),
    (220, 221, 222, 1),
    (230, 231, 1),
)


def example(prompt, answer):
    """Return an example of which the answer is learned."""
    return Tokens((*prompt, *answer), (*(IGNORED,) * len(prompt), *answer))


PAIRS = tuple(
    PreferencePair(example(p, good), example(p, bad))
    for p, good, bad in zip(PROMPTS, GOOD, BAD, strict=True)
)
ANSWERS = (
    LabelledAnswer(PAIRS[0].chosen, desirable=True),
    LabelledAnswer(PAIRS[1].rejected, desirable=False),
    LabelledAnswer(PAIRS[2].chosen, desirable=True),
    LabelledAnswer(PAIRS[3].rejected, desirable=False),
    LabelledAnswer(PAIRS[1].chosen, desirable=True),
)


@attrs.define(eq=False)
class Rows:
    """A training set of whole examples; ``pairs`` or ``answers`` are set where it has them."""

    bundle: object
    examples: tuple
    digest: str = "rows"

    def __len__(self):
        return len(self.examples)

    def batch(self, rows):
        return self.bundle.pack([self.examples[row] for row in rows])


@attrs.define(eq=False)
class PairRows(Rows):
    pairs: tuple = PAIRS


@attrs.define(eq=False)
class AnswerRows(Rows):
    answers: tuple = ANSWERS


@attrs.define(eq=False)
class WeightedRows(Rows):
    weights: list = attrs.field(kw_only=True)


def small_bundle(seed=0):
    """Return a bundle of a small Gemma in fp32 whose predictions are far from uniform."""
    model = tiny_model(VOCABULARY, seed, sliding_window=9)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    network = take_apart(model)
    tokenizer = tiny_tokenizer(TEXTS, VOCABULARY)
    return HfBundle(network, tokenizer, torch.device("cpu"))
