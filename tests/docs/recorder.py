"""A plugin that takes part in every hook and writes down what it saw; see test_docs_hooks.py."""

import torch
from attrs import frozen

from mgk import Spec, hookimpl
from mgk_core.contract.outcome import Refusal, Verdict

CALLS = []
STEPS = []
EVENTS = []


def note(hook, **seen):
    CALLS.append((hook, seen))


@frozen(kw_only=True)
class RefuseOnceSpec(Spec):
    """Refuse the first proposal of a phase."""


@hookimpl
def mgk_register_specs(registry):
    note("mgk_register_specs", registry=registry)
    registry.add("gate", "refuse-once", RefuseOnceSpec)


@hookimpl(wrapper=True)
def mgk_build_model(spec, device):
    result = yield
    note(
        "mgk_build_model",
        spec=spec,
        device=device,
        result=result,
        training=result.model.training,
    )
    return result


@hookimpl(wrapper=True)
def mgk_load_data(spec, bundle):
    result = yield
    note("mgk_load_data", spec=spec, result=result)
    return result


@hookimpl(wrapper=True)
def mgk_attach_adapter(model, spec, name):
    frozen_base = not any(p.requires_grad for p in model.parameters())
    result = yield
    note(
        "mgk_attach_adapter",
        spec=spec,
        name=name,
        frozen_base=frozen_base,
        result=result,
    )
    return result


@hookimpl
def mgk_init_adapter(adapter, ctx):
    kept = {r.phase: r.read() for r in ctx.history}
    note("mgk_init_adapter", adapter=adapter, phase=ctx.phase.name, kept=kept)


@hookimpl(wrapper=True)
def mgk_make_optimizer(adapter, spec):
    result = yield
    note("mgk_make_optimizer", adapter=adapter, spec=spec, result=result)
    return result


@hookimpl(wrapper=True)
def mgk_make_objective(ctx):
    result = yield
    note("mgk_make_objective", phase=ctx.phase.name, adapter=ctx.adapter, result=result)
    return result


@hookimpl
def mgk_loss_terms(ctx):
    note("mgk_loss_terms", phase=ctx.phase.name)

    def term(step):
        STEPS.append((ctx.phase.name, step))
        return 0.0 * ctx.adapter.parameters()[0].sum()

    return {"recorder": term}


@hookimpl(wrapper=True)
def mgk_make_step(ctx):
    result = yield
    note(
        "mgk_make_step",
        phase=ctx.phase.phase.name,
        terms=ctx.named_terms,
        result=result,
    )
    return result


class Observer:
    def on_event(self, event):
        EVENTS.append(dict(event))


@hookimpl
def mgk_observers(ctx):
    note("mgk_observers", phase=ctx.phase.name)
    return [Observer()]


@hookimpl
def mgk_phase_enter(ctx):
    note("mgk_phase_enter", phase=ctx.phase.name, adapter=ctx.adapter)


@hookimpl
def mgk_phase_exit(ctx, outcome):
    note("mgk_phase_exit", phase=ctx.phase.name, outcome=outcome)


@hookimpl
def mgk_recorded(run, phase):
    note("mgk_recorded", phase=phase, journal=(run / "journal.jsonl").read_text())


@hookimpl
def mgk_collect_statistics(ctx):
    note("mgk_collect_statistics", phase=ctx.phase.name, targets=ctx.targets)
    return {"recorder/index": torch.tensor([float(ctx.index)])}


@hookimpl(wrapper=True)
def mgk_evaluate(ctx, probe):
    result = yield
    note("mgk_evaluate", probe=probe, result=result)
    return result


@hookimpl(wrapper=True)
def mgk_propose_merge(ctx):
    result = yield
    note("mgk_propose_merge", phase=ctx.phase.name, result=result)
    return result


@hookimpl(wrapper=True)
def mgk_merge(model, adapter, proposal, spec):
    result = yield
    note("mgk_merge", name=adapter.name, scale=proposal.scale, spec=spec, result=result)
    return result


@hookimpl
def mgk_gate(ctx, before, after):
    first = not any(h == "mgk_gate" and s["phase"] == ctx.phase.name for h, s in CALLS)
    note("mgk_gate", phase=ctx.phase.name, before=len(before), after=after)
    if not ctx.phase.of(RefuseOnceSpec):
        return None
    return Verdict(
        accept=not first,
        refusals=(Refusal("refuse-once", "the first one"),) if first else (),
    )


@hookimpl(wrapper=True)
def mgk_recover(ctx, refusals, tried, spec):
    result = yield
    note(
        "mgk_recover",
        phase=ctx.phase.name,
        refusals=refusals,
        tried=tuple(tried),
        spec=spec,
        result=result,
    )
    return result
