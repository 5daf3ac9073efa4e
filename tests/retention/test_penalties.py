"""ELLA and CLoRA: each penalty by its formula, in a phase, and where it has nothing to do."""

import itertools

import pytest
import torch

import mgk
from mgk_retention.clora import clora_term, directions
from mgk_retention.deltas import pair_of
from mgk_retention.ella import ella_term
from mgk_retention.kept import DELTAS, Past
from mgk_retention.specs import CloraSpec, EllaSpec

CPU = torch.device("cpu")


def attached(context, small, method, **options):
    """A context with a trained adapter."""
    ctx = context(small.network(), {method: options})
    ctx.adapter = small.random_adapter(ctx.model)
    return ctx


def past_of(small, ctx, phases=2):
    """What earlier phases merged, rank 2, every number drawn."""
    generator = torch.Generator().manual_seed(3)
    history = {}
    for number in range(phases):
        kept = {}
        for name in ctx.adapter.targets():
            pair = pair_of(ctx.adapter, name)
            if pair is not None:
                kept[f"{DELTAS}{name}/a"] = torch.randn(
                    2, pair.a.shape[1], generator=generator
                )
                kept[f"{DELTAS}{name}/b"] = torch.randn(
                    pair.b.shape[0], 2, generator=generator
                )
        history[f"p{number}"] = kept
    return small.remembered(**history)


@torch.no_grad()
def test_ella_by_hand(context, small):
    """λ Σ over weights and places of (ΔW · Σ_s ΔW_s)², number by number."""
    ctx = attached(context, small, "ella")
    history = past_of(small, ctx)
    expected = 0.0
    for name in ctx.adapter.targets():
        pair = pair_of(ctx.adapter, name)
        if pair is None:
            continue
        delta = (pair.scale * pair.b @ pair.a).double()
        old = sum(
            r.read()[f"{DELTAS}{name}/b"].double()
            @ r.read()[f"{DELTAS}{name}/a"].double()
            for r in history
        )
        for i, j in itertools.product(range(delta.shape[0]), range(delta.shape[1])):
            expected += float(delta[i, j] * old[i, j]) ** 2
    term = ella_term(ctx, Past(history, CPU), EllaSpec(type="ella", strength=0.25))
    assert term(0).item() == pytest.approx(0.25 * expected, rel=1e-5)


def test_ella_has_no_past_in_the_first_phase(context, small):
    """Without an earlier delta there is no term."""
    ctx = attached(context, small, "ella")
    assert ella_term(ctx, Past((), CPU), EllaSpec(type="ella")) is None


@torch.no_grad()
def test_clora_by_hand(context, small):
    """λ/2 Σ (‖A P‖² + ‖Bᵀ Q‖²) with orthonormal P and Q, which depend on the weight's name alone."""
    ctx = attached(context, small, "clora")
    spec = CloraSpec(type="clora", strength=0.5, share=0.4)
    expected = 0.0
    for name in ctx.adapter.targets():
        pair = pair_of(ctx.adapter, name)
        if pair is None:
            continue
        p = directions(f"{name}/in", pair.a.shape[1], 0.4)
        q = directions(f"{name}/out", pair.b.shape[0], 0.4)
        for columns, width in ((p, pair.a.shape[1]), (q, pair.b.shape[0])):
            assert columns.shape == (width, max(1, round(0.4 * width)))
            eye = torch.eye(columns.shape[1])
            assert torch.allclose(columns.mT @ columns, eye, atol=1e-6)
        for row in pair.a:
            expected += sum(float(row @ c) ** 2 for c in p.unbind(1))
        for column in pair.b.unbind(1):
            expected += sum(float(column @ c) ** 2 for c in q.unbind(1))
    term = clora_term(ctx, Past((), CPU), spec)
    assert term(0).item() == pytest.approx(0.5 / 2 * expected, rel=1e-5)
    assert torch.equal(directions("a/in", 8, 0.5), directions("a/in", 8, 0.5))
    assert not torch.equal(directions("a/in", 8, 0.5), directions("b/in", 8, 0.5))


def test_ella_keeps_deltas_and_clora_keeps_nothing():
    """In a run of two phases ELLA's second phase has its term; CLoRA leaves no statistics."""
    adapter = {"type": "lora", "rank": 3, "alpha": 8, "targets": ["layer1", "layer3"]}
    plain = {
        "adapter": adapter,
        "optimizer": {"type": "adamw", "lr": 4e-3},
        "train": {"steps": 6},
    }
    ends = {}
    for name in ("naive", "ella", "clora"):
        bundle = mgk.load_base("reference", device="cpu")
        table, last = plain | {"retention": {name: {}}}, None
        for number in range(2):
            data = mgk.load_data(bundle, "teacher", seed=number, size=64, items=24)
            last = mgk.run_phase(
                bundle, data, table, after=last, then=[table] * (1 - number)
            )
            if number == 0:
                kept = bool(last.statistics)
                assert kept == (name == "ella")
        ends[name] = torch.cat(
            [p.detach().flatten() for p in bundle.model.parameters()]
        )
    assert not torch.equal(ends["ella"], ends["naive"])
    assert not torch.equal(ends["clora"], ends["naive"])
