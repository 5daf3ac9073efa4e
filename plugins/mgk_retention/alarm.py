"""An observer that reports, without any data, how far each layer has drifted from what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from mgk_core.contract.adapter import Target
from mgk_core.contract.context import PhaseContext
from mgk_retention.deltas import base_weight, dense_delta, matrices, pair_of
from mgk_retention.kept import INPUTS, Past
from mgk_retention.moments import Moment, Sketch
from mgk_retention.penalty import energy, factored_energy
from mgk_retention.specs import AlarmSpec


@define(eq=False)
class Alarm:
    """Measures after every logged step. `tell` sends an event; limit: drift of a layer that is reported."""

    ctx: PhaseContext
    limit: float
    tell: Callable[..., None]
    old: dict[str, Moment] = field(factory=dict)
    energies: dict[str, Tensor] = field(factory=dict)
    norms: dict[str, Tensor] = field(factory=dict)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Measure after each group of logged steps."""
        if event["event"] != "step":
            return
        drift, relative = self.measure()
        if not relative:
            return
        worst = max(drift or relative, key=lambda n: (drift or relative)[n])
        figures = {
            "drift": drift.get(worst),
            "relative": max(relative.values()),
            "layer": worst,
        }
        self.tell(
            "drift",
            phase=self.ctx.phase.name,
            step=event["step"],
            layers=drift,
            norms=relative,
            **figures,
        )
        if drift and drift[worst] > self.limit:
            text = f"drift {drift[worst]:.1%} at {worst} (limit {self.limit:.1%}), largest ‖ΔW‖/‖W‖ {figures['relative']:.2%}"
            self.tell(
                "alarm",
                phase=self.ctx.phase.name,
                step=event["step"],
                text=text,
                **figures,
            )

    @torch.no_grad()
    def measure(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return (tr(ΔW C ΔWᵀ) / tr(W C Wᵀ), ‖ΔW‖ / ‖W‖) by weight; the first only where C is known."""
        assert self.ctx.adapter is not None  # noqa: S101 - observers are made with one
        drift, relative = {}, {}
        for name, target in matrices(self.ctx.adapter).items():
            moved, norm = self._moved(name, target)
            relative[name] = norm / self.norms[name]
            if moved is not None:
                drift[name] = moved / self.energies[name]
        names, values = (
            list(relative),
            torch.stack([*relative.values(), *drift.values()]).tolist(),
        )
        return dict(zip(drift, values[len(names) :], strict=True)), dict(
            zip(names, values, strict=False)
        )

    def _moved(self, name: str, target: Target) -> tuple[Tensor | None, Tensor]:
        assert self.ctx.adapter is not None  # noqa: S101 - observers are made with one
        pair, c = pair_of(self.ctx.adapter, name), self.old.get(name)
        if pair is None:
            delta = dense_delta(self.ctx.adapter, name, target)
            return None if c is None else energy(
                c, _even(delta.shape[0], delta), delta
            ), delta.norm()
        a, b = pair.a.float(), pair.b.float() * pair.scale
        norm = ((b.mT @ b) * (a @ a.mT)).sum().clamp(min=0).sqrt()
        return None if c is None else factored_energy(
            c, _even(b.shape[0], b), a, b
        ), norm


def _even(width: int, like: Tensor) -> Moment:
    """The identity: every output counts alike."""
    return Sketch(like.new_zeros(width, 0), like.new_ones(width))


def make_alarm(ctx: PhaseContext, spec: AlarmSpec, tell: Callable[..., None]) -> Alarm:
    """Prepare what does not change during a phase."""
    assert ctx.adapter is not None  # noqa: S101 - observers are made with one
    alarm, past = Alarm(ctx, spec.limit, tell), Past(ctx.history, ctx.device)
    for name, target in matrices(ctx.adapter).items():
        weight = base_weight(target)
        alarm.norms[name] = weight.norm()
        c = past.total(INPUTS, name, spec.sketch, spec.tail)
        if c is not None:
            alarm.old[name] = c
            alarm.energies[name] = energy(c, _even(weight.shape[0], weight), weight)
    return alarm
