"""The learning-rate range test: train a throw-away adapter at ever higher rates, and see where the loss falls.

Smith 2017 (arXiv 1506.01186, section 3.3). Nothing is merged or kept; the base has the same bits afterwards.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
from attrs import frozen

from mgk_core.contract.context import PhaseContext, Remembered, StepContext, StepFn
from mgk_core.contract.errors import InputError, nearest
from mgk_core.contract.progress import activity, counting
from mgk_core.contract.sampling import Order
from mgk_core.record.checkpoint import seed_all
from mgk_core.record.events import Events, ignore
from mgk_core.record.journal import Journal
from mgk_core.record.store import Store
from mgk_core.run.attached import attached
from mgk_core.run.resume import base_statistics
from mgk_core.run.session import Session
from mgk_core.run.setup import Prepared, open_session

SMOOTHING = 0.9
"""Weight of the past in the smoothed loss: it averages about ten steps."""
DIVERGED = 4.0
"""The test ends where the smoothed loss is so many times its minimum."""
FELL = 0.99
"""A minimum above this share of the first loss is noise, and nothing is suggested."""


@frozen
class Point:
    """One step. smooth: the exponential mean of the losses so far, corrected for its start."""

    lr: float
    loss: float
    smooth: float


@frozen
class Curve:
    """What the test found.

    configured: the phase's own ``optimizer.lr``. ended: why it ended before the highest rate, or "".
    """

    phase: str
    points: tuple[Point, ...]
    configured: float
    ended: str = ""

    @property
    def minimum(self) -> float | None:
        """The rate of the lowest smoothed loss; None where the loss did not fall."""
        if not self.points:
            return None
        best = min(self.points, key=lambda p: p.smooth)
        return best.lr if best.smooth < FELL * self.points[0].smooth else None

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest, per factor of the rate, before its minimum."""
        if self.minimum is None:
            return None
        before = [p for p in self.points if p.lr <= self.minimum]
        pairs = list(itertools.pairwise(before))
        return min(pairs, key=lambda pair: pair[1].smooth - pair[0].smooth)[1].lr

    @property
    def suggestion(self) -> float | None:
        """The steepest rate, at most a tenth of the minimum's: a whole phase is longer than the test."""
        if self.minimum is None or self.steepest is None:
            return None
        return min(self.steepest, self.minimum / 10)


def find_lr(
    prepared: Prepared,
    phase: str | None = None,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
) -> Curve:
    """Train a phase's adapter on the untouched base, its rate rising from ``low`` to ``high``.

    :param phase: default: the first phase
    :param steps: the rate is multiplied by the same factor at each
    :raises InputError: there is no such phase, or its optimizer or step has no rate to set
    """
    index = _index(prepared, phase)
    if not 0 < low < high:
        raise InputError(f"expected 0 < --from < --to, got {low:g} and {high:g}")
    with tempfile.TemporaryDirectory(prefix="mgk-lr-find-") as scratch:
        store = Store(Path(scratch))
        session = open_session(prepared, store, Journal(store), Events(ignore))
        ctx = _context(session, index, steps)
        rates = [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
        return _swept(session, ctx, rates)


def _index(prepared: Prepared, phase: str | None) -> int:
    names = [p.name for p in prepared.resolved.config.phases]
    if phase is None:
        return 0
    if phase not in names:
        raise InputError(f"--phase {phase}: no such phase{nearest(phase, names)}")
    return names.index(phase)


def _context(session: Session, index: int, steps: int) -> PhaseContext:
    """Return the phase's context as if it were the first phase: the base's statistics are its history."""
    ctx = session.context(index)
    ctx.steps = steps
    found = base_statistics(session)
    if found:
        ctx.history = (Remembered("base", Path("base"), lambda: dict(found)),)
    return ctx


def _swept(session: Session, ctx: PhaseContext, rates: Sequence[float]) -> Curve:
    hooks, phase = session.hooks, ctx.phase
    configured = getattr(phase.optimizer, "lr", None)
    if not isinstance(configured, float):
        raise InputError(
            f"phases.{phase.name}.optimizer: type {phase.optimizer.type!r} has no key lr to search for"
        )
    seed_all(ctx.seed)
    with attached(hooks, ctx.model, phase.adapter, phase.name, seed=ctx.seed) as own:
        ctx.adapter = own
        hooks.init_adapter(own, ctx)
        ctx.optimizer = hooks.make_optimizer(own, phase.optimizer)
        ctx.objective = hooks.make_objective(ctx)
        if ctx.objective is not None:
            ctx.objective.prepare()
        terms = hooks.loss_terms(ctx)
        step = hooks.make_step(
            StepContext(
                ctx,
                tuple(terms.values()),
                tuple(terms),
                factor=lambda i: rates[i] / configured,
            )
        )
        ctx.model.train()
        try:
            points, ended = _steps(ctx, step, rates)
        finally:
            ctx.model.eval()
    session.weights.check("the range test")
    return Curve(phase.name, tuple(points), configured, ended)


def _steps(
    ctx: PhaseContext, step: StepFn, rates: Sequence[float]
) -> tuple[list[Point], str]:
    """Take a step at each rate; return the points, and why they are fewer than the rates."""
    assert ctx.data is not None  # noqa: S101 - opening the session loads data
    train = ctx.phase.train
    order = Order(len(ctx.data.train), train.batch_size, ctx.seed)
    points: list[Point] = []
    mean, first = 0.0, None
    with activity("learning rates"), counting(len(rates), "steps") as advance:
        for i, rate in enumerate(rates):
            rows = order.rows(i)
            parts = [
                ctx.batch(rows[at : at + train.micro])
                for at in range(0, len(rows), train.micro)
            ]
            out = step(parts, i)
            ctx.take_figures()
            first = out.lr / rate if first is None else first
            _check_rate(ctx, out.lr, first * rate)
            loss = float(out.loss)
            if not math.isfinite(loss) or float(out.skipped or 0):
                return points, f"the loss was not finite at {rate:.2g}"
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            smooth = mean / (1 - SMOOTHING ** (i + 1))
            points.append(Point(rate, loss, smooth))
            advance(1)
            if smooth > DIVERGED * min(p.smooth for p in points):
                return points, f"the loss rose to {DIVERGED:g} times its minimum"
    return points, ""


def _check_rate(ctx: PhaseContext, found: float, wanted: float) -> None:
    if not math.isclose(found, wanted, rel_tol=1e-6):
        raise InputError(
            f"phases.{ctx.phase.name}.step: type {ctx.phase.step.type!r} does not follow the rates that it"
            f" is given (`StepContext.factor`): it stepped at {found:.3g} and not {wanted:.3g}"
        )


def as_table(curve: Curve) -> dict[str, object]:
    """Return a curve and what follows from it, for JSON."""
    found = {key: getattr(curve, key) for key in ("suggestion", "steepest", "minimum")}
    return attrs.asdict(curve) | found
