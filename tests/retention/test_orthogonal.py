"""O-LoRA's and EWC's penalties against their formulas."""

import pytest
import torch

from mgk_retention.collect import collect
from mgk_retention.kept import FACTORS, FISHER, Past
from mgk_retention.orthogonal import ewc_term, olora_term
from mgk_retention.specs import EwcSpec, OloraSpec

CPU = torch.device("cpu")


def test_o_lora_is_the_overlap_with_every_old_a(small, context):
    """strength · Σ over layers and old phases of ‖A_old Aᵀ‖²; zero for orthogonal factors."""
    ctx = context(small.network(), {"o-lora": {}})
    ctx.adapter = small.random_adapter(ctx.model)
    old = [
        {
            f"{FACTORS}{n}": torch.randn(2, p.shape[1])
            for n, p in ctx.model.named_parameters()
            if n in ctx.targets
        }
        for _ in range(2)
    ]
    past = Past(small.remembered(a=old[0], b=old[1]), CPU)
    expected = sum(
        (kept[f"{FACTORS}{n}"] @ ctx.adapter.factors(n).a.mT).square().sum().item()
        for n in ctx.targets
        for kept in old
    )
    assert olora_term(ctx, past, OloraSpec(type="o-lora", strength=0.25))(
        0
    ).item() == pytest.approx(0.25 * expected, rel=1e-5)
    assert olora_term(ctx, Past((), CPU), OloraSpec(type="o-lora")) is None


@pytest.mark.parametrize("type_", ["lora", "dora"])
def test_ewc_is_the_fisher_weighted_square(small, context, type_):
    """strength / 2 · Σ F ΔW² over two old phases, for factors and for dense deltas."""
    model = small.network()
    kept = {
        f"p{i}": collect(context(model, {"ewc": {}}, data=small.rows(seed=i)))
        for i in range(2)
    }
    ctx = context(model, {"ewc": {}})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ctx.adapter = small.random_adapter(model, type_)
    value = ewc_term(
        ctx, Past(small.remembered(**kept), CPU), EwcSpec(type="ewc", strength=4.0)
    )(0)
    expected = 0.0
    for name in ctx.targets:
        delta = ctx.adapter.merged_weight(name, before[name]) - before[name]
        fisher = sum(k[f"{FISHER}{name}"] for k in kept.values())
        expected += 2.0 * (fisher * delta.square()).sum().item()
    assert value.item() == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(value, ctx.adapter.parameters())
    assert all(g.abs().sum() > 0 for g in gradients)
