"""The training loop of one phase: batches by step number, losses read seldom, state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from attrs import define, field
from torch import Tensor

from mgk_core.checkpoint import Progress
from mgk_core.context import PhaseContext, StepFn, StepOut
from mgk_core.device import memory
from mgk_core.diagnose import BAD, first_bad_layer
from mgk_core.errors import MgkError
from mgk_core.events import Events
from mgk_core.outofmemory import FittingStep

CHECKED = 4  # examples whose loss is compared at resume; a forward pass over them is a fraction of a step


class Diverged(MgkError):
    """Too many steps in a row were not finite; the adapter is that of the last good step."""


def steps_of(examples: int, batch_size: int, epochs: float, steps: int | None) -> int:
    """Return the number of optimizer steps; the last batch of an epoch may be smaller."""
    if steps is not None:
        return steps
    return max(1, round(math.ceil(examples / batch_size) * epochs))


@define(eq=False)
class Order:
    """Which rows a step sees: a pure function of seed and step."""

    examples: int
    batch_size: int
    seed: int
    _epoch: int = -1
    _rows: list[int] = field(factory=list)

    def rows(self, step: int) -> list[int]:
        """Return the rows of one optimizer step; every epoch is a new permutation."""
        per_epoch = math.ceil(self.examples / self.batch_size)
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._rows = torch.randperm(self.examples, generator=generator).tolist()
            self._epoch = epoch
        return self._rows[place * self.batch_size : (place + 1) * self.batch_size]


@define(eq=False)
class Trainer:
    """Runs steps of one phase and tells of them.

    save: writes a checkpoint. stop: asked after every step; True ends the loop after a checkpoint.
    halved: told of the micro-batch to which out-of-memory brought a step.
    """

    ctx: PhaseContext
    step: StepFn
    events: Events
    progress: Progress
    save: Callable[[], None]
    stop: Callable[[], bool]
    halved: Callable[[int], None] = lambda _: None
    best: dict[str, Tensor] | None = None
    _pending: list[StepOut] = field(factory=list)
    _since: float = field(factory=time.perf_counter)
    _saved_at: float = field(factory=time.monotonic)
    busy: float = 0.0

    def run(self, until: int) -> bool:
        """Train up to step ``until``; False where it was asked to stop before."""
        settings = self.ctx.phase.train
        order = self._order()
        perform = FittingStep(self.ctx, self.step, self.progress, self._halved)
        self.ctx.model.train()
        self._since = time.perf_counter()
        while self.progress.step < until:
            number = self.progress.step
            self._pending.append(perform(order.rows(number), number))
            self.progress.step = number + 1
            last = self.progress.step == until
            if last or self.progress.step % settings.log_every == 0:
                self._flush(until)
            if settings.eval_every and (last or self.progress.step % settings.eval_every == 0):
                self._evaluate_dev()
            asked = not last and self.stop()
            if asked or (not last and self._due()):
                self.checkpoint()
            if asked:
                return False
        return True

    def _order(self) -> Order:
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        return Order(len(self.ctx.data.train), self.ctx.phase.train.batch_size, self.ctx.seed)

    def _halved(self, micro: int) -> None:
        """Go on with smaller micro-batches; a checkpoint first, so that a resumed run has them from here on."""
        self.halved(micro)
        self.checkpoint()

    def checkpoint(self) -> None:
        """Write a checkpoint now; figures not yet logged go with it."""
        self._read_pending()
        self.progress.check = self.next_loss()
        self.save()
        self._saved_at = time.monotonic()
        self.events("checkpoint", phase=self.ctx.phase.name, step=self.progress.step)

    @torch.no_grad()
    def next_loss(self) -> float:
        """Mean loss of the next step's first examples, without dropout: what a resumed run must find again."""
        ctx = self.ctx
        assert ctx.data is not None  # noqa: S101 - the runner loads data first
        rows = self._order().rows(self.progress.step)[:CHECKED]
        was_training = ctx.model.training
        ctx.model.eval()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            total, count = ctx.bundle.loss(ctx.data.train.batch(rows))
        ctx.model.train(was_training)
        return float(total) / max(float(count), 1e-30)

    def _due(self) -> bool:
        settings = self.ctx.phase.train
        if settings.checkpoint_steps and self.progress.step % settings.checkpoint_steps == 0:
            return True
        minutes = settings.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _read_pending(self) -> None:
        """Move the steps' figures from the device into `Progress`: one transfer for all of them."""
        if not self._pending:
            return
        self.progress.pending += _figures(self._pending)
        self._pending.clear()

    def _flush(self, until: int) -> None:
        """Log one line for the steps since the last one."""
        self._read_pending()
        rows, self.progress.pending = self.progress.pending, []
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.busy += seconds
        good = [r for r in rows if r[3] == 0]
        counted = sum(r[2] for r in good)
        mean = sum(r[0] * r[2] for r in good) / counted if counted else None
        self.progress.recent = (self.progress.recent + [r[0] for r in good])[-50:]
        self.events(
            "step",
            phase=self.ctx.phase.name,
            step=self.progress.step,
            steps=until,
            loss=mean,
            terms=sum(r[1] for r in good) / len(good) if good else None,
            grad_norm=good[-1][4] if good and good[-1][4] >= 0 else None,
            lr=rows[-1][5] if rows else None,
            skipped=sum(int(r[3]) for r in rows),
            count=int(sum(r[2] for r in rows)),
            unit="samples" if self.ctx.bundle.tokenizer is None else "tokens",
            seconds=seconds,
            per_second=sum(r[2] for r in rows) / seconds if seconds > 0 else None,
            **memory(self.ctx.device),
        )
        self._watch(rows)

    def _watch(self, rows: Sequence[Sequence[float]]) -> None:
        """Stop after too many bad steps in a row, and say where it began."""
        limit = self.ctx.phase.train.max_bad_steps
        for row in rows:
            self.progress.bad_in_row = self.progress.bad_in_row + 1 if row[3] else 0
        if self.progress.bad_in_row >= limit:
            raise Diverged(self._diagnosis())

    def _diagnosis(self) -> str:
        ctx, settings = self.ctx, self.ctx.phase.train
        assert ctx.data is not None  # noqa: S101 - the runner loads data first
        rows = self._order().rows(self.progress.step - 1)
        micro = self.progress.micro_batch or settings.micro_batch or settings.batch_size
        found = [
            first_bad_layer(ctx.bundle, ctx.data.train.batch(rows[i : i + micro])) for i in range(0, len(rows), micro)
        ]
        layer = next((f for f in found if BAD in f), found[0])
        return (
            f"phase {ctx.phase.name!r}: {self.progress.bad_in_row} steps in a row up to step {self.progress.step}"
            f" had a loss or gradient that is not finite; {layer}; those updates were left out. Lower"
            f" phases.{ctx.phase.name}.optimizer.lr or set optimizer.clip, then run the phase again with 'mgk phase'"
        )

    @torch.no_grad()
    def _evaluate_dev(self) -> None:
        """Mean loss on dev; the best step's adapter is kept where ``train.keep`` asks for it."""
        ctx = self.ctx
        if ctx.data is None or not ctx.data.dev or ctx.adapter is None:
            return
        began = time.perf_counter()
        ctx.model.eval()
        sums = [ctx.bundle.loss(batch) for batch in ctx.data.dev]
        ctx.model.train()
        loss = float(sum(float(s) for s, _ in sums) / max(sum(float(c) for _, c in sums), 1e-30))
        if self.progress.best_loss is None or loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
            if ctx.phase.train.keep == "best":
                self.best = {k: v.detach().cpu().clone() for k, v in ctx.adapter.state_dict().items()}
        seconds = time.perf_counter() - began
        self.events("dev", phase=ctx.phase.name, step=self.progress.step, loss=loss, seconds=seconds)
        self._since += seconds


def _figures(outs: Sequence[StepOut]) -> list[list[float]]:
    """(loss, terms, count, skipped, grad norm or −1, lr) of each step, with one transfer for all of them.

    Per step it would cost more than the step's own work. On the CPU there is nothing to transfer.
    """
    like = outs[0].loss
    zero, none = torch.zeros_like(like), torch.full_like(like, -1.0)
    columns = (
        [out.loss for out in outs],
        [zero if out.terms is None else out.terms for out in outs],
        [out.count for out in outs],
        [zero if out.skipped is None else out.skipped for out in outs],
        [none if out.grad_norm is None else out.grad_norm for out in outs],
    )
    if like.device.type == "cpu":
        found = [[t.item() for t in column] for column in columns]
    else:
        found = torch.stack([t for column in columns for t in column]).view(len(columns), -1).tolist()
    return [[*row, out.lr] for *row, out in zip(*found, outs, strict=True)]
