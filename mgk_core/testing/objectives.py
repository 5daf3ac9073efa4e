"""Conformance tests of losses: what an objective gives on texts, pairs or labelled answers."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor

from mgk_core.contract.bundle import (
    LabelledAnswer,
    PhaseData,
    PreferencePair,
    Tokens,
)
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_core.contract.specs import LossSpec, Spec
from mgk_core.testing.laws import Law, LawResult, NotApplicable, hold_all, law, require
from mgk_core.testing.small_run import (
    SmallBundle,
    SmallTrainSet,
    same_weights,
    small_data,
    small_phase,
    weights_of,
)

Make = Callable[[PhaseContext], Objective | None]
ROWS = range(4)
PROMPT = 3  # tokens of each small example that are not learned


@define(eq=False)
class SmallPairs(SmallTrainSet):
    """Rows of pairs: each example against the one before it, with the same prompt."""

    pairs: Sequence[PreferencePair] = field(factory=tuple)


@define(eq=False)
class SmallAnswers(SmallTrainSet):
    """Rows of labelled answers, every other one good."""

    answers: Sequence[LabelledAnswer] = field(factory=tuple)


@frozen(eq=False)
class Subject:
    """A loss under test: what makes its objective, and its spec."""

    make: Make
    spec: Spec

    @contextmanager
    def phase(self) -> Iterator[tuple[PhaseContext, Objective]]:
        """Give a phase on data that the loss accepts, and its prepared objective.

        :raises NotApplicable: it is the base's own loss, or accepts none of the small data
        """
        with tempfile.TemporaryDirectory(prefix="mgk-kit-") as folder:
            ctx = small_phase("retention", [])
            ctx.directory = Path(folder)
            ctx.phase = evolve(ctx.phase, loss=self.spec)
            ctx.data = self._accepted(ctx)
            made = self.make(ctx)
            if made is None:
                raise NotApplicable("it is the base's own loss")
            made.prepare()
            yield ctx, made

    def _accepted(self, ctx: PhaseContext) -> PhaseData:
        """Return texts, pairs or labelled answers: the first that ``check`` of the spec accepts."""
        assert ctx.data is not None  # noqa: S101 - `small_phase` makes it
        reason = ""
        for train in _training_sets(ctx):
            data = evolve(ctx.data, train=train)
            try:
                if isinstance(self.spec, LossSpec):
                    self.spec.check(data, ctx.bundle)
            except InputError as error:
                reason = str(error)
                continue
            return data
        raise NotApplicable(f"it accepts none of the small data: {reason}")


def _training_sets(ctx: PhaseContext) -> Iterator[SmallTrainSet]:
    """Yield the same examples as texts, as pairs and as labelled answers."""
    assert isinstance(ctx.bundle, SmallBundle)  # noqa: S101 - `small_phase` makes it
    train = small_data(ctx.bundle).train
    assert isinstance(train, SmallTrainSet)  # noqa: S101 - the kit's own
    yield train
    examples = list(train.examples)
    answers = [_answer(example, example) for example in examples]
    rejected = [
        _answer(own, other)
        for own, other in zip(examples, examples[1:] + examples[:1], strict=True)
    ]
    pairs = [PreferencePair(a, b) for a, b in zip(answers, rejected, strict=True)]
    yield SmallPairs(train.bundle, answers, train.digest, pairs)
    labelled = [LabelledAnswer(a, desirable=i % 2 == 0) for i, a in enumerate(answers)]
    yield SmallAnswers(train.bundle, answers, train.digest, labelled)


def _answer(prompt: Tokens, answer: Tokens) -> Tokens:
    """Return the prompt of one example with the rest of another, which is learned."""
    ids = (*prompt.ids[:PROMPT], *answer.ids[PROMPT:])
    return Tokens(ids, (*(-100,) * PROMPT, *ids[PROMPT:]))


def _loss(objective: Objective) -> ObjectiveLoss:
    return objective.loss(objective.batch(ROWS))


@law("a loss is a finite sum with a count")
def form(subject: Subject) -> None:
    """Total and count are finite 0-dim tensors, the count above 0, and figures are finite vectors without a gradient."""
    with subject.phase() as (_, objective):
        found = _loss(objective)
    for name, value in (("total", found.total), ("count", found.count)):
        scalar = isinstance(value, Tensor) and value.dim() == 0
        require(scalar, f"the {name} is not a 0-dim tensor")
        number = float(value.detach())
        require(math.isfinite(number), f"the {name} is {number}")
    require(float(found.count) > 0, f"the count is {float(found.count)}")
    for name, values in found.figures.items():
        plain = values.dim() == 1 and not values.requires_grad
        require(plain, f"the figure {name!r} is not a vector without a gradient")
        require(
            bool(torch.isfinite(values).all()), f"the figure {name!r} is not finite"
        )


@law("the same rows give the same loss")
def pure(subject: Subject) -> None:
    """Asked again, and by a new objective, the same rows give the same bits; no weight of the model changes."""
    with subject.phase() as (ctx, objective):
        before = weights_of(ctx.bundle)
        one, two = _loss(objective), _loss(objective)
        require(same_weights(before, ctx.bundle), "computing the loss changed a weight")
        fresh = subject.make(ctx)
        assert fresh is not None  # noqa: S101 - it was made above
        fresh.prepare()
        three = _loss(fresh)
    require(torch.equal(one.total, two.total), "the second loss is another one")
    require(torch.equal(one.total, three.total), "a new objective gives another loss")


@law("the adapter learns, and nothing else")
def trains(subject: Subject) -> None:
    """The loss has a finite gradient that is not 0 at the adapter's parameters, and none at other weights."""
    with subject.phase() as (ctx, objective):
        assert ctx.adapter is not None  # noqa: S101 - `small_phase` attaches it
        own = ctx.adapter.parameters()
        total = _loss(objective).total
        require(total.requires_grad, "the total carries no gradient")
        total.backward()  # type: ignore[no-untyped-call]
        found = [p.grad for p in own if p.grad is not None]
        require(any(bool(g.any()) for g in found), "the adapter gets no gradient")
        sound = all(bool(torch.isfinite(g).all()) for g in found)
        require(sound, "a gradient is not finite")
        names = {id(p) for p in own}
        rest = [p for p in ctx.model.parameters() if id(p) not in names]
        require(all(p.grad is None for p in rest), "the loss trains the base")


LAWS: tuple[Law[Subject], ...] = (form, pure, trains)


def check_objective(make: Make, spec: Spec, named: str = "loss") -> list[LawResult]:
    """Run every test on a loss.

    :param make: as ``mgk_make_objective``
    :param spec: an instance of the loss's `LossSpec`
    """
    return hold_all(LAWS, Subject(make, spec), named)
