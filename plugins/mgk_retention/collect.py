"""One pass over a phase's data that collects what later phases need to know of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from attrs import define, field
from torch import Tensor

from mgk_core.contract.adapter import LowRank, base_state_dict
from mgk_core.contract.bundle import Batch
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.progress import counting
from mgk_core.model.statistics import visit_layers
from mgk_retention.accumulate import Accumulator, Counts, make_accumulator
from mgk_retention.examples import keep_examples
from mgk_retention.kept import FACTORS, FISHER, INPUTS, OUTPUTS, alias, packed
from mgk_retention.ledger_merge import kept_deltas
from mgk_retention.moments import Moment
from mgk_retention.needs import Form, Needs, needs_after
from mgk_retention.opcm import kept_state


@define(eq=False)
class Layers:
    """Takes what `visit_layers` shows and adds it up, weight by weight.

    weights: the base's tensors that may be read; those that are not matrices are left out. seen: positions.
    """

    weights: dict[str, Tensor]
    needs: Needs
    device: torch.device
    inputs: dict[str, Accumulator] = field(factory=dict)
    outputs: dict[str, Accumulator] = field(factory=dict)
    fisher: dict[str, Tensor] = field(factory=dict)
    shares: dict[str, str] = field(factory=dict)
    seen: int = 0
    _last: tuple[str, Tensor] | None = None
    _most: dict[str, int] = field(factory=dict)

    def __call__(self, name: str, x: Tensor, gradient: Tensor | None) -> None:
        """Add one layer's batch. x: (n, in) or (n, 1) of ids   gradient: (n, out)."""
        weight = self.weights.get(name)
        if weight is None or weight.dim() < 2:
            return
        weight = weight.flatten(1)  # a convolution's inputs are its unfolded windows
        self._most[name] = self._most.get(name, 0) + x.shape[0]
        self.seen = max(self.seen, self._most[name])
        if self.needs.inputs is not None and (
            x.shape[1] in weight.shape or not x.is_floating_point()
        ):
            self._add_inputs(name, x, weight, self.needs.inputs)
        if gradient is None or gradient.shape[1] not in weight.shape:
            return
        if self.needs.outputs is not None:
            made = self.outputs.get(name) or self._make(
                self.outputs, name, gradient.shape[1], self.needs.outputs
            )
            made.add(gradient)
        if self.needs.fisher and x.is_floating_point() and x.shape[1] in weight.shape:
            found = gradient.float().square().mT @ x.float().square()
            self.fisher[name] = (
                self.fisher[name].add_(found) if name in self.fisher else found
            )

    def _add_inputs(self, name: str, x: Tensor, weight: Tensor, form: Form) -> None:
        """Add inputs once for layers that have the same (for example queries, keys and values)."""
        first, last = self._last or (name, x)
        if name in self.shares and _same(last, x):
            return
        if name in self.shares:
            raise RuntimeError(
                f"{name}: had the inputs of {self.shares[name]} in one batch and others in the next"
            )
        if (
            first != name
            and name not in self.inputs
            and last.data_ptr() == x.data_ptr()
            and last.shape == x.shape
        ):
            self.shares[name] = first
            return
        self._last = (name, x)
        made = self.inputs.get(name)
        if made is None and not x.is_floating_point():
            made = self.inputs[name] = Counts(weight.shape[0], self.device)
        (made or self._make(self.inputs, name, x.shape[1], form)).add(x)

    def _make(
        self, into: dict[str, Accumulator], name: str, width: int, form: Form
    ) -> Accumulator:
        into[name] = make_accumulator(width, form.k, form.tail, self.device)
        return into[name]

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as it is kept."""
        kept: dict[str, Tensor] = {}
        for part, made in ((INPUTS, self.inputs), (OUTPUTS, self.outputs)):
            for name, accumulator in made.items():
                kept |= packed(part, name, _mean(accumulator, name))
        for name, other in self.shares.items():
            kept |= alias(INPUTS, name, other)
        for name, found in self.fisher.items():
            kept[FISHER + name] = (found / max(self._most[name], 1)).cpu()
        return kept


def _mean(accumulator: Accumulator, name: str) -> Moment:
    if not bool(accumulator.power().isfinite()):
        raise InputError(
            f"{name}: its inputs or gradients on old data are not finite, so nothing can be learnt from them; the"
            " model's loss on that data is NaN or inf"
        )
    return accumulator.mean()


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two layers of one batch were given the same numbers."""
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def visit(
    ctx: PhaseContext, needs: Needs, batches: Iterable[Batch], *, live: bool = False
) -> Layers:
    """Run batches through the bare base (live: adapters on) until enough positions were seen, and add up."""
    weights = base_state_dict(ctx.model)
    layers = Layers(
        {n: weights[n] for n in ctx.targets if n in weights}, needs, ctx.device
    )

    def until_enough() -> Iterator[Batch]:
        with counting(needs.max_tokens, "positions") as advance:
            for batch in batches:
                before = layers.seen
                yield batch
                advance(layers.seen - before)
                if layers.seen >= needs.max_tokens:
                    return

    visit_layers(
        ctx.bundle,
        ctx.targets,
        until_enough(),
        layers,
        gradients=needs.gradients,
        live=live,
    )
    return layers


def old_batches(ctx: PhaseContext) -> Iterable[Batch]:
    """Return what stands for this phase: the calibration text for the base, else its training data.

    Training rows come in an order of their own, so that a bounded look at them is a fair one.
    """
    assert ctx.data is not None  # noqa: S101 - the runner loads data first
    if ctx.base_phase:
        return ctx.data.calibration
    rows = torch.randperm(
        len(ctx.data.train), generator=ctx.generator(salt=17)
    ).tolist()
    return ctx.train_batches(rows, ctx.phase.train.micro)


def collect(ctx: PhaseContext) -> dict[str, Tensor]:
    """Return what later phases need to know of this one, or of the base; nothing where none asks."""
    needs = needs_after(ctx)
    kept = visit(ctx, needs, old_batches(ctx)).tensors() if needs.layers else {}
    if needs.replay is not None:
        kept |= keep_examples(ctx, needs.replay)
    if needs.factors and not ctx.base_phase and isinstance(ctx.adapter, LowRank):
        for name in ctx.targets:
            factors = ctx.adapter.factors(name)
            if factors is not None:
                kept[FACTORS + name] = factors.a.detach().float().cpu().clone()
    if needs.deltas and not ctx.base_phase:
        kept |= kept_deltas(ctx)
    if needs.opcm and not ctx.base_phase:
        kept |= kept_state(ctx)
    return kept
