"""drift-guard as a loss term, for adapters of every kind."""

import pytest
import torch
from torch import nn

from mgk_core.contract.adapter import Target, base_state_dict
from mgk_core.contract.errors import InputError
from mgk_retention.collect import collect
from mgk_retention.deltas import base_weight
from mgk_retention.guard import guard_term, make_guard
from mgk_retention.kept import INPUTS, OUTPUTS, Past
from mgk_retention.specs import DriftGuardSpec


def written_out(adapter, before, past, spec):
    """Σ_l λ tr(Ĝ ΔW C ΔWᵀ) / (tr(Ĝ W C Wᵀ) / t) with every matrix dense, in float64; all linear weights."""
    value = 0.0
    for name, target in adapter.targets().items():
        weight = before[name].double()
        delta = adapter.merged_weight(name, before[name].double()) - weight
        if target.transposed:
            weight, delta = weight.mT, delta.mT
        c = sum(m.dense().double() for m in past.moments(INPUTS, name))
        g = sum(m.dense().double() for m in past.moments(OUTPUTS, name))
        g = g / g.trace() / 2 + torch.eye(len(g), dtype=g.dtype) / len(g) / 2
        drift = (g @ delta @ c @ delta.mT).trace()
        value += (
            spec.strength
            * drift
            / ((g @ weight @ c @ weight.mT).trace() / len(past.files))
        )
    return value.detach()


def history_of(small, context, model, retention, phases=2):
    """Statistics of several old phases, each with inputs of its own."""
    kept = {}
    for number in range(phases):
        ctx = context(
            model,
            retention,
            data=small.rows(seed=number, inside=_inside(model), outside=4),
        )
        kept[f"old{number}"] = collect(ctx)
    return small.remembered(**kept)


def _inside(model):
    return next(model.parameters()).shape[1]


@pytest.mark.parametrize("type_", ["lora", "dora"])
@pytest.mark.parametrize("options", [{}, {"init": "pissa"}, {"rslora": True}])
def test_guard_is_the_formula(small, context, type_, options):
    """Two old phases, trained adapter, alpha ≠ rank, non-square weights: the value is the formula's, for LoRA the gradient too."""
    model, retention = small.network(), {"drift-guard": {"sketch": 0, "strength": 7.0}}
    history = history_of(small, context, model, retention)
    before = {n: t.detach().clone() for n, t in base_state_dict(model).items()}
    adapter = small.random_adapter(model, type_, **options)
    ctx = context(model, retention)
    ctx.adapter, ctx.history = adapter, history
    past, spec = Past(history, ctx.device), ctx.specs(DriftGuardSpec)[0]
    guard = make_guard(ctx, past, spec)
    assert bool(guard.dense) == (type_ == "dora")
    assert not guard.unguarded
    value = guard(0)
    expected = written_out(adapter, before, past, spec)
    assert value.item() == pytest.approx(expected.item(), rel=2e-5)
    if type_ == "dora":
        return  # its gradient leaves the norm out on purpose (arXiv 2402.09353, section 4.3)
    # The gradient by a finite difference along a random direction, in fp32: both sides to 1e-2.
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, materialize_grads=True)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((f * d).sum()) for f, d in zip(found, direction, strict=True))
    step = 1e-3
    sides = []
    for sign in (step, -2 * step, step):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * d)
        sides.append(written_out(adapter, before, past, spec).item())
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=2e-2)


def test_layers_of_one_shape_share_a_product(small, context):
    """Two layers of the same shape are one stack, and the sum is as if they were apart."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)
    )
    retention = {"drift-guard": {"sketch": 3}}
    history = history_of(small, context, model, retention)
    ctx = context(model, retention)
    ctx.adapter, ctx.history = small.random_adapter(model), history
    past, spec = Past(history, ctx.device), ctx.specs(DriftGuardSpec)[0]
    whole = make_guard(ctx, past, spec)
    assert sorted(len(s.names) for s in whole.stacks) == [1, 2]
    parts = 0.0
    for name in ctx.adapter.targets():
        kept = {
            n: {k: v for k, v in r.read().items() if f"/{name}/" in k}
            for n, r in zip("ab", history, strict=True)
        }
        parts += make_guard(ctx, Past(small.remembered(**kept), ctx.device), spec)(
            0
        ).item()
    assert whole(0).item() == pytest.approx(parts, rel=1e-5)


def test_transposed_weights_are_guarded_as_they_act(small, context):
    """transformers' Conv1D stores (in, out); the guard sees inputs and outputs all the same."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(10, 6), nn.Tanh(), conv1d(4, 10))
    for module in (model[0], model[2]):
        nn.init.normal_(module.weight, std=0.3)
    retention = {"drift-guard": {"sketch": 0}}
    ctx = context(model, retention)
    kept = collect(ctx)
    ctx.history = small.remembered(base=kept)
    before = {n: t.detach().clone() for n, t in base_state_dict(model).items()}
    ctx.adapter = small.random_adapter(model)
    past, spec = Past(ctx.history, ctx.device), ctx.specs(DriftGuardSpec)[0]
    found = make_guard(ctx, past, spec)(0).item()
    assert found == pytest.approx(
        written_out(ctx.adapter, before, past, spec).item(), rel=2e-5
    )


def test_untrained_lora_costs_nothing(small, context):
    """B = 0: nothing drifts, and the gradient is zero too."""
    import mgk

    model, retention = small.network(), {"drift-guard": {}}
    history = history_of(small, context, model, retention, phases=1)
    ctx = context(model, retention)
    ctx.adapter, ctx.history = mgk.attach(model, "lora", rank=2), history
    term = guard_term(ctx, Past(history, ctx.device), ctx.specs(DriftGuardSpec)[0])
    value = term(0)
    assert value.item() == 0
    assert all(
        (g == 0).all()
        for g in torch.autograd.grad(
            value, ctx.adapter.parameters(), materialize_grads=True
        )
    )


def test_notes_say_what_is_held_and_what_is_not(small, context):
    """Without statistics of the base the notes say that it is unprotected; without any there is no term."""
    model, retention = small.network(), {"drift-guard": {}}
    ctx = context(model, retention)
    kept = {k: v for k, v in collect(ctx).items() if "/0.weight/" not in k}
    ctx.adapter = small.random_adapter(model)
    spec = ctx.specs(DriftGuardSpec)[0]
    assert guard_term(ctx, Past((), ctx.device), spec) is None
    guard = guard_term(ctx, Past(small.remembered(text=kept), ctx.device), spec)
    assert guard.unguarded == ["0.weight"]
    assert "2 of 3 weights" in ctx.notes[-1]
    assert "the base is unprotected" in ctx.notes[-1]


def test_embeddings_are_guarded_by_the_frequency_of_their_ids(small, context):
    """A one-hot input's moment is diagonal: rows of tokens that old text never used may move freely."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(10, 4))
    data = small.rows()
    data.inputs = torch.randint(
        0, 4, (40, 2), generator=torch.Generator().manual_seed(0)
    )
    ctx = context(model, {"drift-guard": {"sketch": 2}}, data=data)
    ctx.history = small.remembered(base=collect(ctx))
    ctx.adapter = small.random_adapter(model, targets=["0"])
    spec = ctx.specs(DriftGuardSpec)[0]
    guard = make_guard(ctx, Past(ctx.history, ctx.device), spec)
    factors = ctx.adapter.factors("0.weight")
    value = guard(0)
    (of_a,) = torch.autograd.grad(value, [factors.a])
    assert value.item() > 0
    assert (of_a[:, 4:] == 0).all()
    assert (of_a[:, :4] != 0).any()


def test_packed_weights_are_told_before_the_first_step():
    """What a packed weight computes cannot be read off: an error that names it and the mend, not a wrong shape."""
    packed = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    module = nn.Module()
    module.weight = packed
    with pytest.raises(
        InputError,
        match=r"layer\.weight: its numbers are packed \(torch\.uint8\).*base\.quantize",
    ):
        base_weight(Target("layer.weight", module, "weight"))
