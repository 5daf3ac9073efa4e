"""Replay and self-distillation: loss terms that look at examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.nn import functional

from mgk_core.contract.bundle import Batch, require_unpacks
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import LossTerm
from mgk_core.contract.sampling import steps_of
from mgk_retention.examples import from_tensors
from mgk_retention.kept import REPLAY, Past
from mgk_retention.specs import DistilSpec, ReplaySpec

BatchAt = Callable[[int], Batch]
"""Step → batch: a pure function of seed, phase and step, so that a resumed run sees the same ones."""


OFTEN = 4
"""How often an example may be seen in a phase. The Korean pipeline's 48 calibration texts, seen six times each beside 100
steps of text, were learned by heart, and the base's other texts of their kind became 0.8 nats worse."""


@frozen(eq=False)
class KeptBatches:
    """Step → batch of ``size`` kept examples. pools: what each earlier phase kept; they are drawn from equally often."""

    pools: Sequence[Sequence[Any]]
    size: int
    pack: Callable[[Sequence[Any]], Batch]
    generator: Callable[[int], torch.Generator]

    def __call__(self, step: int) -> Batch:
        """Draw the step's examples."""
        generator = self.generator(101 + step)
        which = torch.randint(
            len(self.pools), (self.size,), generator=generator
        ).tolist()
        place = torch.rand(self.size, generator=generator).tolist()
        return self.pack(
            [
                self.pools[p][int(u * len(self.pools[p]))]
                for p, u in zip(which, place, strict=True)
            ]
        )

    def times(self, steps: int) -> float:
        """Return how often an example of the smallest pool is seen in so many steps."""
        return steps * self.size / len(self.pools) / min(map(len, self.pools))


def kept_batches(
    ctx: PhaseContext, past: Past, size: int, who: str
) -> KeptBatches | None:
    """Return batches of kept examples, every earlier phase equally often; None where nothing was kept."""
    assert ctx.data is not None  # noqa: S101 - the runner loads data first
    bundle = require_unpacks(ctx.bundle, who)
    kind = type(bundle.unpack(ctx.data.train.batch([0]))[0])
    pools = [from_tensors(fields, kind, ctx.device) for _, fields in past.group(REPLAY)]
    if not pools:
        return None
    return KeptBatches(pools, size, bundle.pack, lambda salt: ctx.generator(salt=salt))


def new_batches(ctx: PhaseContext, size: int) -> BatchAt:
    """Return batches of the phase's own training data."""
    data = ctx.data
    assert data is not None  # noqa: S101 - the runner loads data first

    def at(step: int) -> Batch:
        rows = torch.randint(
            len(data.train), (size,), generator=ctx.generator(salt=211 + step)
        )
        return data.train.batch(rows.tolist())

    return at


def calibration_batches(ctx: PhaseContext) -> BatchAt:
    """Return the calibration batches that came with the phase's data, one after the other."""
    found = () if ctx.data is None else ctx.data.calibration
    if not found:
        raise InputError(
            f"phase {ctx.phase.name!r}: self-distillation on 'calibration' needs calibration text in the phase's data;"
            " name some there, or use on = 'new' or 'kept'"
        )
    return lambda step: found[step % len(found)]


def replay_term(ctx: PhaseContext, past: Past, spec: ReplaySpec) -> LossTerm | None:
    """strength · mean loss of kept examples. The phase's notes warn if they are seen too often."""
    at = kept_batches(ctx, past, spec.batch or ctx.phase.train.batch_size, spec.type)
    if at is None:
        return None
    train, rows = ctx.phase.train, ctx.data.train if ctx.data is not None else ()
    times = at.times(steps_of(len(rows), train.batch_size, train.epochs, train.steps))
    note = f"replay: kept examples are seen up to {times:.0f} times each, and may be learnt by heart; set its batch lower"
    if times > OFTEN and note not in ctx.notes:
        ctx.notes.append(note)

    def term(step: int) -> Tensor:
        total, count = ctx.bundle.loss(at(step))
        return spec.strength * total / count

    return term


def distil_term(ctx: PhaseContext, past: Past, spec: DistilSpec) -> LossTerm | None:
    """strength · distance of the adapted model from the base, adapters off, on the same examples."""
    at = _batches(ctx, past, spec)
    if at is None:
        return None
    look = _layers if spec.level == "layers" else _outputs
    adapter = ctx.adapter
    assert adapter is not None  # noqa: S101 - attached before terms are made

    def term(step: int) -> Tensor:
        batch = at(step)
        with torch.no_grad(), adapter.disabled():
            teacher = look(ctx, batch)
        student = look(ctx, batch)
        return spec.strength * distance(student, teacher, spec)

    return term


def _batches(ctx: PhaseContext, past: Past, spec: DistilSpec) -> BatchAt | None:
    size = spec.batch or ctx.phase.train.batch_size
    if spec.on == "calibration":
        return calibration_batches(ctx)
    return (
        kept_batches(ctx, past, size, spec.type)
        if spec.on in ("kept", "base")
        else new_batches(ctx, size)
    )


def _outputs(ctx: PhaseContext, batch: Batch) -> list[Tensor]:
    return [ctx.bundle.outputs(batch)]


def _layers(ctx: PhaseContext, batch: Batch) -> list[Tensor]:
    """Return the output of each adapted module, in the order of the adapter's targets."""
    assert ctx.adapter is not None  # noqa: S101 - attached before terms are made
    found: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    modules = dict.fromkeys(t.module for t in ctx.adapter.targets().values())
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(keep).remove)
        ctx.bundle.loss(batch)
    return found


def distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], spec: DistilSpec
) -> Tensor:
    """Mean KL(teacher ‖ student) over positions, or mean of ‖s − t‖² / ‖t‖² over layers."""
    if spec.level == "outputs" and spec.distance == "kl":
        s, t = student[0].log_softmax(-1), teacher[0].log_softmax(-1)
        return functional.kl_div(s, t, reduction="sum", log_target=True) / s.shape[0]
    shares = [
        (s.float() - t.float()).square().sum() / t.float().square().sum()
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(shares).mean()
