"""Learning to prefer the right option to the wrong ones, beside generating it.

With β(q, o) the mean log-likelihood per token of option o after question q, the term is the
length-normalised loss of T-Few (Liu et al. 2022, arXiv 2205.05638, eq. 3), averaged over questions:

    −log( exp β(q, right) / Σ_o exp β(q, o) )
"""

from __future__ import annotations

import torch
from attrs import define, field
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from mgk_core.contract.bundle import Choice, ScoresOptions
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import LossTerm
from mgk_core.contract.sampling import Order
from mgk_text.specs import McqSpec
from mgk_text.trainset import QuestionRows


@define(eq=False)
class Contrast:
    """The loss term. order: which questions a step sees, as many as it has examples."""

    bundle: ScoresOptions
    choices: tuple[Choice, ...] = field(repr=False)
    order: Order
    weight: float

    def __call__(self, step: int) -> Tensor:
        """Return weight · the mean loss over the step's questions, ()."""
        chosen = [self.choices[row] for row in self.order.rows(step)]
        scores = torch.split(
            self.bundle.option_logprobs(chosen), [len(c.options) for c in chosen]
        )
        table = pad_sequence(
            list(scores), batch_first=True, padding_value=-torch.inf
        )  # (questions, options)
        right = torch.tensor([c.answer for c in chosen], device=table.device)
        return self.weight * cross_entropy(table, right)


def contrast_term(ctx: PhaseContext, spec: McqSpec) -> LossTerm:
    """Make the term of a phase on questions.

    :raises InputError: the base cannot differentiate through the scores of options
    """
    rows = ctx.data.train if ctx.data is not None else None
    if not isinstance(ctx.bundle, ScoresOptions) or not isinstance(rows, QuestionRows):
        raise InputError(
            f"phases.{ctx.phase.name}.data.contrast: this base offers no gradients of options' scores; set it to 0"
        )
    train = ctx.phase.train
    size = min(train.micro, len(rows.choices))
    return Contrast(
        ctx.bundle,
        rows.choices,
        Order(len(rows.choices), size, ctx.seed),
        spec.contrast,
    )
