"""The alarm: drift without data, told as events."""

import pytest
import torch

from mgk_retention.alarm import make_alarm
from mgk_retention.collect import collect
from mgk_retention.specs import AlarmSpec


def watch(small, context, type_="lora", *, history=True, limit=0.05):
    """An alarm on a trained adapter, its context, and where its events go."""
    model, told = small.network(), []
    ctx = context(model, {"drift-guard": {"sketch": 0}})
    if history:
        ctx.history = small.remembered(base=collect(ctx))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ctx.adapter = small.random_adapter(model, type_)
    tell = lambda event, **data: told.append({"event": event, **data})  # noqa: E731 - short on purpose
    return (
        make_alarm(ctx, AlarmSpec(type="alarm", limit=limit, sketch=0), tell),
        ctx,
        before,
        told,
    )


@pytest.mark.parametrize("type_", ["lora", "dora"])
def test_figures_are_the_formulas(small, context, type_):
    """tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) is the share by which old outputs moved; ‖ΔW‖/‖W‖ needs no history."""
    alarm, ctx, before, _ = watch(small, context, type_)
    drift, relative = alarm.measure()
    x = ctx.data.train.inputs
    for name in ctx.targets:
        weight = before[name]
        delta = ctx.adapter.merged_weight(name, weight) - weight
        assert relative[name] == pytest.approx(
            (delta.norm() / weight.norm()).item(), rel=1e-4
        )
        if name == "0.weight":
            moved = (x @ delta.mT).square().sum() / (x @ weight.mT).square().sum()
            assert drift[name] == pytest.approx(moved.item(), rel=1e-4)


def test_events_at_logged_steps_only(small, context):
    """Each logged step tells the drift of all layers; beyond the limit an alarm names the worst one."""
    alarm, ctx, _, told = watch(small, context, limit=0.05)
    alarm.on_event({"event": "evaluation"})
    assert told == []
    alarm.on_event({"event": "step", "step": 7})
    assert [t["event"] for t in told] == ["drift", "alarm"]
    assert set(told[0]["layers"]) == set(ctx.targets)
    assert told[1]["layer"] == max(told[0]["layers"], key=told[0]["layers"].get)
    assert told[1]["step"] == 7
    assert told[1]["layer"] in told[1]["text"]


def test_below_the_limit_nothing_is_alarmed(small, context):
    """The figures are told all the same."""
    alarm, _, _, told = watch(small, context, limit=1e9)
    alarm.on_event({"event": "step", "step": 1})
    assert [t["event"] for t in told] == ["drift"]


def test_without_history_only_norms_are_known(small, context):
    """No statistics: ‖ΔW‖/‖W‖ is told, and no alarm can be raised on a drift that nobody knows."""
    alarm, _, _, told = watch(small, context, history=False, limit=1e-9)
    alarm.on_event({"event": "step", "step": 1})
    assert [t["event"] for t in told] == ["drift"]
    assert told[0]["layers"] == {}
    assert told[0]["drift"] is None
    assert told[0]["relative"] > 0
    assert not torch.is_grad_enabled() or all(
        p.grad is None for p in alarm.ctx.adapter.parameters()
    )
