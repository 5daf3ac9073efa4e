"""The training loop of one phase: batches by step number, losses read seldom, state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from attrs import define, evolve, field
from torch import Tensor

from mgk_core.contract.bundle import Batch
from mgk_core.contract.context import Averages, PhaseContext, StepFn, StepOut
from mgk_core.contract.errors import MgkError
from mgk_core.contract.outcome import LossTerm
from mgk_core.contract.progress import Advance, counting
from mgk_core.contract.sampling import Order
from mgk_core.contract.settings import TrainSettings
from mgk_core.model.device import memory
from mgk_core.record.checkpoint import Progress
from mgk_core.record.events import Events
from mgk_core.run.diagnose import BAD, bad_term, first_bad_layer
from mgk_core.run.out_of_memory import FittingStep

CHECKED = 4  # examples whose loss is compared at resume; a forward pass over them is a fraction of a step


Perform = Callable[[Sequence[int], int], StepOut]
"""Performs the step of some rows with a number."""


class Diverged(MgkError):
    """Too many steps in a row were not finite; the adapter is that of the last good step."""


@define(eq=False)
class Trainer:
    """Runs the steps of one phase and reports them.

    save: writes a checkpoint. stop: asked after every step; True ends the loop after a checkpoint.
    halved: called with the new micro-batch size after an out-of-memory error. auto_batch: whether the
    micro-batch may be halved. terms: the loss terms by name, for the message about steps that are not finite.
    """

    ctx: PhaseContext
    step: StepFn
    events: Events
    progress: Progress
    save: Callable[[], None]
    stop: Callable[[], bool]
    halved: Callable[[int], None] = lambda _: None
    auto_batch: bool = False
    terms: Mapping[str, LossTerm] = field(factory=dict)
    best: dict[str, Tensor] | None = None
    _pending: list[StepOut] = field(factory=list)
    _figures: list[Mapping[str, Tensor]] = field(factory=list)
    _since: float = field(factory=time.perf_counter)
    _saved_at: float = field(factory=time.monotonic)

    def run(self, until: int) -> bool:
        """Train up to step ``until``, or until dev does not improve; False where it was asked to stop before."""
        if self.progress.stopped:
            return True  # a checkpoint from after the early stop
        fitting = FittingStep(
            self.ctx, self.step, self.progress, self._halved, auto=self.auto_batch
        )
        perform = fitting if self.auto_batch else fitting.once
        self.ctx.model.train()
        self._since = time.perf_counter()
        with counting(until, "steps") as advance:
            advance(self.progress.step)
            return self._steps(until, perform, advance)

    def _steps(self, until: int, perform: Perform, advance: Advance) -> bool:
        settings, progress, pending = self.ctx.phase.train, self.progress, self._pending
        log_every, eval_every, rows = (
            settings.log_every,
            settings.eval_every,
            self._order().rows,
        )
        while (number := progress.step) < until:
            pending.append(perform(rows(number), number))
            self._figures += self.ctx.take_figures()
            progress.step = done = number + 1
            advance(1)
            last = done == until
            if last or done % log_every == 0:
                self._flush(until)
            if eval_every and (last or done % eval_every == 0):
                self._evaluate_dev()
            if progress.stopped:
                self._stop_early(until)
            if last or progress.stopped:
                break
            asked = self.stop()
            if asked or self._due(settings):
                self.checkpoint()
            if asked:
                return False
        return True

    def _stop_early(self, until: int) -> None:
        """Log what is not logged yet, and why the training ends here."""
        if self._pending or self.progress.pending:
            self._flush(until)
        self.events(
            "early_stop",
            phase=self.ctx.phase.name,
            step=self.progress.step,
            steps=until,
            best_step=self.progress.best_step,
            best_loss=self.progress.best_loss,
        )

    def _order(self) -> Order:
        assert self.ctx.data is not None  # noqa: S101 - the runner loads data first
        return Order(
            len(self.ctx.data.train), self.ctx.phase.train.batch_size, self.ctx.seed
        )

    def _halved(self, micro: int) -> None:
        """Continue with smaller micro-batches; checkpoint first, so that a resumed run uses them from here."""
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
            total, count = ctx.loss(ctx.batch(rows))
        ctx.model.train(was_training)
        return float(total) / max(float(count), 1e-30)

    def _due(self, settings: TrainSettings) -> bool:
        if (
            settings.checkpoint_steps
            and self.progress.step % settings.checkpoint_steps == 0
        ):
            return True
        minutes = settings.checkpoint_minutes
        if minutes is None:
            return False
        return self.ctx.world.same(time.monotonic() - self._saved_at >= 60 * minutes)

    def _read_pending(self) -> None:
        """Move the steps' figures from the device into `Progress`: one transfer for all of them."""
        for figures in self._figures:
            _add(figures, self.progress.figures)
        self._figures.clear()
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
        figures, self.progress.figures = self.progress.figures, {}
        good = [r for r in rows if not r[3]]
        seen = sum([r[2] for r in rows])
        counted = seen if len(good) == len(rows) else sum([r[2] for r in good])
        self.events(
            "step",
            phase=self.ctx.phase.name,
            step=self.progress.step,
            steps=until,
            loss=sum([r[0] * r[2] for r in good]) / counted if counted else None,
            terms=sum([r[1] for r in good]) / len(good) if good else None,
            grad_norm=good[-1][4] if good and good[-1][4] >= 0 else None,
            lr=rows[-1][5],
            skipped=len(rows) - len(good),
            count=int(seen),
            unit=self._unit(),
            seconds=seconds,
            per_second=seen / seconds if seconds > 0 else None,
            **_means(figures),
            **memory(self.ctx.device),
        )
        self._watch(rows if len(good) < len(rows) else ())

    def _unit(self) -> str:
        """Return what a step's count counts."""
        if self.ctx.objective is not None:
            return self.ctx.objective.unit
        return "samples" if self.ctx.bundle.tokenizer is None else "tokens"

    def _watch(self, rows: Sequence[Sequence[float]]) -> None:
        """Stop after too many bad steps in a row, and report the first one. rows: empty if all were good."""
        if not rows:
            self.progress.bad_in_row = 0
        for row in rows:
            self.progress.bad_in_row = self.progress.bad_in_row + 1 if row[3] else 0
        if self.progress.bad_in_row >= self.ctx.phase.train.max_bad_steps:
            raise Diverged(self._diagnosis())

    def _diagnosis(self) -> str:
        ctx = self.ctx
        assert ctx.data is not None  # noqa: S101 - the runner loads data first
        rows = self._order().rows(self.progress.step - 1)
        micro = self.progress.micro_batch or ctx.phase.train.micro
        found = [
            first_bad_layer(ctx, ctx.batch(rows[i : i + micro]))
            for i in range(0, len(rows), micro)
        ]
        layer = bad_term(self.terms, self.progress.step - 1) or next(
            (f for f in found if BAD in f), found[0]
        )
        return (
            f"phase {ctx.phase.name!r}: {self.progress.bad_in_row} steps in a row up to step {self.progress.step}"
            f" had a loss or gradient that is not finite; {layer}; those updates were left out. Lower"
            f" phases.{ctx.phase.name}.optimizer.lr or set optimizer.clip, then run the phase again with 'mgk phase'"
        )

    @torch.no_grad()
    def _evaluate_dev(self) -> None:
        """Mean loss on dev; the best step's adapter is kept where ``train.keep`` asks for it."""
        ctx, progress = self.ctx, self.progress
        batches = ctx.dev_batches()
        if not batches or ctx.adapter is None:
            return
        began = time.perf_counter()
        with averaged(self.step):
            loss = self._dev_loss(batches)
            best = self._best_so_far()
            self._count_wait(loss, best)
            if loss < best or progress.best_step is None:
                progress.best_loss, progress.best_step = loss, progress.step
                if ctx.phase.train.keep == "best":
                    self.best = {
                        k: v.detach().cpu().clone()
                        for k, v in ctx.adapter.state_dict().items()
                    }
        seconds = time.perf_counter() - began
        self.events(
            "dev",
            phase=ctx.phase.name,
            step=progress.step,
            loss=loss,
            seconds=seconds,
        )
        self._since += seconds

    def _best_so_far(self) -> float:
        """Return the best loss on dev, infinity where there was none or it was not finite."""
        best = self.progress.best_loss
        return math.inf if best is None or not math.isfinite(best) else best

    def _count_wait(self, loss: float, best: float) -> None:
        """Count evaluations in a row that were not better than the best before them."""
        settings, progress = self.ctx.phase.train, self.progress
        better = loss < best - settings.min_delta
        progress.waited = 0 if better else progress.waited + 1
        progress.stopped = progress.waited == settings.patience

    def _dev_loss(self, batches: Sequence[Batch]) -> float:
        ctx = self.ctx
        ctx.model.eval()
        sums = [ctx.loss(batch) for batch in batches]
        ctx.model.train()
        total = sum(float(s) for s, _ in sums)
        return total / max(sum(float(c) for _, c in sums), 1e-30)


def averaged(step: StepFn) -> AbstractContextManager[None]:
    """Have the weights to evaluate in the adapter inside the block."""
    return step.averaged() if isinstance(step, Averages) else nullcontext()


def _add(figures: Mapping[str, Tensor], sums: dict[str, list[float]]) -> None:
    """Add the figures of one micro-batch to name → [sum, number]."""
    for name, values in figures.items():
        whole = sums.setdefault(name, [0.0, 0.0])
        whole[0] += float(values.detach().double().sum())
        whole[1] += values.numel()


def _means(sums: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Return the mean of each of an objective's figures under ``figures``; nothing where it has none."""
    means = {name: total / n for name, (total, n) in sums.items() if n}
    return {"figures": means} if means else {}


def _figures(outs: Sequence[StepOut]) -> list[list[float]]:
    """(loss, terms, count, skipped, grad norm or −1, lr) of each step, with one transfer for all of them.

    Per step it would cost more than the step's own work. On the CPU there is nothing to transfer.
    """
    if isinstance(outs[0].loss, Tensor) and outs[0].loss.device.type != "cpu":
        outs = _fetched(outs)
    return [
        [
            float(o.loss),
            0.0 if o.terms is None else float(o.terms),
            float(o.count),
            0.0 if o.skipped is None else float(o.skipped),
            -1.0 if o.grad_norm is None else float(o.grad_norm),
            o.lr,
        ]
        for o in outs
    ]


def _fetched(outs: Sequence[StepOut]) -> list[StepOut]:
    """Return the same reports with numbers in place of the device's tensors."""
    held = [[n for n in _FIGURES if isinstance(getattr(o, n), Tensor)] for o in outs]
    read = iter(
        torch.stack(
            [getattr(o, n) for o, names in zip(outs, held, strict=True) for n in names]
        ).tolist()
    )
    return [
        evolve(o, **{n: next(read) for n in names})
        for o, names in zip(outs, held, strict=True)
    ]


_FIGURES = ("loss", "terms", "count", "skipped", "grad_norm")
