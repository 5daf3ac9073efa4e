"""Distillation from the base itself or from another model with the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import attrs
import torch
from attrs import define
from torch import Tensor

from mgk_core.contract.bundle import Batch, Bundle, Predictions, PredictsTokens
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_core.contract.peers import peers
from mgk_core.contract.specs import Spec
from mgk_preference.chunks import by_rows
from mgk_preference.formulas import divergence
from mgk_preference.reference import evaluating
from mgk_preference.specs import BASE, DistillSpec


@define(eq=False)
class Distill(Objective):
    """Divergence of the model's distribution from the teacher's at each learned token.

    teacher: another model's bundle; None for the base of the phase, its adapter switched off.
    """

    ctx: PhaseContext
    spec: DistillSpec
    teacher: Bundle | None = None

    @property
    def unit(self) -> str:
        """What is counted."""
        return "tokens"

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows."""
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        return self.ctx.data.train.batch(rows)

    def dev(self) -> Sequence[Batch]:
        """Return the dev batches."""
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        return self.ctx.data.dev

    def loss(self, batch: Batch) -> ObjectiveLoss:
        """Return the divergence at each token, summed, and the likelihood's part."""
        spec = self.spec
        taught = self._teacher(batch)
        own = cast("PredictsTokens", self.ctx.bundle).predictions(
            batch, embedding_noise=spec.neftune_noise_alpha
        )

        def part(rows: slice) -> Tensor:
            with torch.no_grad(), self._as_teacher():
                teacher = taught.logits(rows)
            student = own.logits(rows) / spec.temperature
            return divergence(student, teacher / spec.temperature, spec.beta)

        found = by_rows(part, len(own.tokens))
        total, figures = found.sum(), {"divergence": found.detach()}
        if spec.likelihood_weight:
            nll = -own.logprobs()
            total = total + spec.likelihood_weight * nll.sum()
            figures["nll"] = nll.detach()
        count = torch.full((), float(len(own.tokens)), device=total.device)
        return ObjectiveLoss(total, count, figures)

    def _teacher(self, batch: Batch) -> Predictions:
        bundle = self.teacher or self.ctx.bundle
        predicts = cast("PredictsTokens", bundle)
        with torch.no_grad(), evaluating(bundle.model), self._as_teacher():
            return predicts.predictions(batch)

    def _as_teacher(self) -> AbstractContextManager[Any]:
        """Switch the adapter off where the base teaches: its head may be adapted too."""
        if self.teacher is not None:
            return nullcontext()
        assert self.ctx.adapter is not None  # noqa: S101 - objectives are made with it attached
        disabled: AbstractContextManager[Any] = self.ctx.adapter.disabled()
        return disabled


def make_distill(ctx: PhaseContext, spec: DistillSpec) -> Distill:
    """Make the objective; another teacher is loaded as the base of the run is.

    :raises InputError: it cannot be loaded, or its tokenizer is another one
    """
    if spec.teacher == BASE:
        return Distill(ctx, spec)
    where = f"phases.{ctx.phase.name}.loss.teacher"
    built = peers().build_model(_placed(ctx.config.base, spec.teacher), ctx.device)
    built.model.requires_grad_(False).eval()
    if not isinstance(built, PredictsTokens):
        raise InputError(f"{where}: {spec.teacher} is not a language model")
    if _vocabulary(built) != _vocabulary(ctx.bundle):
        raise InputError(
            f"{where}: the tokenizer of {spec.teacher} is not the base's; distillation compares the"
            " probabilities of each token, so teacher and base need the same vocabulary"
        )
    return Distill(ctx, spec, built)


def _placed(base: Spec, place: str) -> Spec:
    """Return the base's specification with another directory or hub id."""
    keys = {field.name for field in attrs.fields(type(base))}
    if "id" not in keys:
        raise InputError(
            f"loss.teacher: a base of type {base.type!r} has no 'id', so no other can be loaded"
        )
    changes: dict[str, Any] = {"id": place}
    if "revision" in keys:
        changes["revision"] = None
    return attrs.evolve(base, **changes)


def _vocabulary(bundle: Bundle) -> Any:
    return bundle.tokenizer.get_vocab()
