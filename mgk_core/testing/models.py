"""Conformance tests of language models as bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from attrs import frozen

from mgk_core.contract.bundle import Bundle, Choice, LanguageBundle, Tokens
from mgk_core.testing.laws import Law, LawResult, NotApplicable, hold_all, law, require

FIRST, WORDS = 4, 3
"""Ids from 4 to 6: behind the special tokens of most tokenizers, and known to every model."""
CLOSE = 1e-4
"""Relative distance of two sums of the same fp32 terms, computed in other batches."""


@frozen(eq=False)
class Model:
    """A bundle under test. make: the same model each time."""

    make: Callable[[], Bundle]

    def language(self) -> LanguageBundle:
        """Return the bundle; `NotApplicable` where it is not a language model."""
        found = self.make()
        if not isinstance(found, LanguageBundle):
            raise NotApplicable("it is not a language model")
        return found


def _examples(count: int = 3) -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        ids = (
            torch.randint(0, WORDS, (5 + 2 * i,), generator=generator) + FIRST
        ).tolist()
        made.append(Tokens(tuple(ids), (-100, -100, *ids[2:])))
    return made


@torch.no_grad()
def _loss(bundle: LanguageBundle, examples: Sequence[Tokens]) -> tuple[float, float]:
    total, count = bundle.loss(bundle.pack(examples))
    return float(total), float(count)


@law("loss is a sum and a count")
def sums(model: Model) -> None:
    """Two finite 0-dim tensors; the count is the number of learned tokens, so micro-batches add up."""
    bundle, examples = model.language(), _examples()
    total, count = bundle.loss(bundle.pack(examples))
    require(
        total.dim() == 0 and count.dim() == 0, "loss and count are not 0-dim tensors"
    )
    learned = sum(label >= 0 for e in examples for label in e.labels[1:])
    require(
        float(count) == learned,
        f"the count is {float(count):g}; {learned} tokens are learned",
    )


@law("packing does not leak")
def packing(model: Model) -> None:
    """The loss of several examples in one batch is the sum of each one's alone."""
    bundle, examples = model.language(), _examples()
    whole, _ = _loss(bundle, examples)
    alone = sum(_loss(bundle, [e])[0] for e in examples)
    error = abs(whole - alone) / abs(alone)
    require(
        error <= CLOSE, f"packed {whole:.6g}, alone {alone:.6g}: off by {error:.3g}"
    )


@law("score is the loss")
def score(model: Model) -> None:
    """An option's log-likelihood is minus the loss of its tokens behind the prompt."""
    bundle = model.language()
    item = Choice((4, 5, 4), ((5, 6), (6, 6, 4)), 0)
    (found,) = bundle.score([item])
    for option, logprob in zip(item.options, found.logprob, strict=True):
        labels = (*(-100,) * len(item.prompt), *option)
        loss, _ = _loss(bundle, [Tokens((*item.prompt, *option), labels)])
        error = abs(loss + logprob) / abs(loss)
        require(
            error <= CLOSE, f"score {logprob:.6g}, loss {loss:.6g}: off by {error:.3g}"
        )


@law("asking changes nothing")
def untouched(model: Model) -> None:
    """Loss, outputs and score leave the weights, the training mode and the random state alone."""
    bundle, batch = model.language(), None
    before = [p.detach().clone() for p in bundle.model.parameters()]
    state, training = torch.get_rng_state(), bundle.model.training
    with torch.no_grad():
        batch = bundle.pack(_examples())
        bundle.loss(batch)
        bundle.outputs(batch)
        bundle.score([Choice((4, 5), ((5,), (6,)), 0)])
    same = all(
        torch.equal(a, b)
        for a, b in zip(before, bundle.model.parameters(), strict=True)
    )
    require(same, "a weight changed")
    require(bundle.model.training == training, "the training mode changed")
    require(
        torch.equal(torch.get_rng_state(), state),
        "it drew from torch's global generator",
    )


LAWS: tuple[Law[Model], ...] = (sums, packing, score, untouched)


def check_model(make: Callable[[], Bundle], named: str = "model") -> list[LawResult]:
    """Run every test on a language model. make: the same model each time."""
    return hold_all(LAWS, Model(make), named)
