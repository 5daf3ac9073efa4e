"""Merged equals live, over kinds of modules, shapes, dtypes, scales, batches and histories of phases."""

import copy

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

import mgk
from mgk_core.contract.adapter import all_disabled
from mgk_core.contract.errors import MergeError
from mgk_core.testing.history import shake, train
from mgk_core.testing.strategies import BATCHES, HISTORIES, SEEDS, cases, scales
from mgk_core.testing.zoo import KINDS

LINEAR = [
    k for k in KINDS if k not in ("attention", "mixed")
]  # linear in input and weight


def attach(case, name, rank, alpha, seed, *, type="lora", **options):
    """Attach to everything; ranks are cut to what each weight allows."""
    return mgk.attach(
        case.model,
        type,
        name=name,
        seed=seed,
        rank=rank,
        alpha=alpha,
        targets=["*"],
        **options,
    )


def integers(tensors, seed, size):
    """Overwrite tensors with whole numbers from −size to size."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.data.copy_(
            torch.randint(-size, size + 1, tensor.shape, generator=generator)
        )


def delta(adapter, name, target):
    weight = target.parameter.detach().clone()
    return adapter.merged_weight(name, weight) - weight


@given(
    case=cases(LINEAR, [torch.float64]), scale=scales((1, 2)), batch=BATCHES, history=HISTORIES, seed=SEEDS,
    rows=st.integers(0, 4), bias=st.booleans(), pissa=st.booleans(),
)  # fmt: skip
def test_whole_numbers_merge_without_any_error(
    case, scale, batch, history, seed, rows, bias, pissa
):
    """With small whole numbers in float64 every sum is exact: merged and live are the same bits, phase after phase."""
    rank, alpha = scale
    integers(case.model.parameters(), seed, 4)
    x = case.inputs(seed, batch)
    if x.is_floating_point():
        integers([x], seed, 3)
    bias = bias and case.kind not in ("embedding", "experts")
    for index, phase in enumerate(history):
        adapter = attach(
            case,
            f"p{index}",
            rank,
            alpha,
            phase,
            bias=bias,
            init="pissa" if pissa else "gaussian",
        )
        integers(adapter.state_dict().values(), phase + 1, 3)
        live = case.model(x)
        if all(not delta(adapter, n, t).any() for n, t in adapter.targets().items()):
            with pytest.raises(MergeError, match="zero"):
                mgk.merge(case.model, adapter)
            mgk.detach(case.model, adapter)
            continue
        mgk.merge(case.model, adapter, chunk_rows=rows)
        assert torch.equal(case.model(x), live)


def absolute(case, adapter, x):
    """Return |x| · (|W| + scale · |B| |A|) + |bias| in float64: what rounding errors are proportional to."""
    twin = copy.deepcopy(case.model).double()
    whole = {n: p.detach().abs() for n, p in twin.named_parameters()}
    for name, target in adapter.targets().items():
        factors = adapter.factors(name)
        change = (
            factors.b.detach().double().abs() @ factors.a.detach().double().abs()
        ) * factors.scale
        whole[name] = whole[name] + (
            change.t() if target.transposed else change.reshape(whole[name].shape)
        )
    with all_disabled(twin):
        return torch.func.functional_call(
            twin, whole, (x.double().abs() if x.is_floating_point() else x,)
        )


@given(
    case=cases(LINEAR, [torch.float32, torch.float64, torch.bfloat16]), scale=scales((1, 2)), batch=BATCHES,
    history=HISTORIES, seed=SEEDS,
)  # fmt: skip
def test_any_numbers_merge_within_the_bound_of_their_rounding(
    case, scale, batch, history, seed
):
    """|merged − live| ≤ what the unit roundoff, the inner dimension and |x|, |W|, |A|, |B| allow, entry by entry.

    A sum of n rounded products errs by at most n · u times the sum of their absolute values
    (Higham 2002, eq. 3.5), on either side; inner products are of length in + rank + 6 in all.
    A bf16 weight, the live model's two roundings, the merged model's one, and the old residual
    add 5 u of bf16.
    """
    rank, alpha = scale
    dtype = next(case.model.parameters()).dtype
    unit = {torch.float64: 2.0**-53}.get(dtype, 2.0**-24)
    x = case.inputs(seed, batch)
    for index, phase in enumerate(history):
        adapter = attach(case, f"p{index}", rank, alpha, phase)
        train(case, adapter, seed=phase, steps=2)
        shake(adapter, seed=phase, size=0.1)
        live, allowed = case.model(x).double(), absolute(case, adapter, x)
        inner = max(
            max(p.shape[0], p[0].numel())
            for p in case.model.parameters()
            if p.dim() > 1
        )
        mgk.merge(case.model, adapter)
        merged = case.model(x).double()
        bound = 2 * unit * (inner + rank + 6) * allowed
        if dtype == torch.bfloat16:
            bound = bound + 5.5 * 2.0**-9 * allowed
        assert ((merged - live).abs() <= bound).all()
        event(
            f"share of the bound used: {((merged - live).abs() / bound.clamp_min(1e-300)).max().item():.1f}"
        )


@given(
    case=cases(["attention", "mixed", "linear", "conv1d"], [torch.float32, torch.float64], [3]), scale=scales((1, 2)),
    history=HISTORIES, type_=st.sampled_from(["lora", "dora"]), rslora=st.booleans(),
)  # fmt: skip
def test_trained_networks_with_nonlinear_layers_merge_to_their_live_output(
    case, scale, history, type_, rslora
):
    """‖merged − live‖ ≤ u · inner dimension · layers · 8 · ‖live‖ through GELU and attention."""
    rank, alpha = scale
    unit = {torch.float64: 2.0**-53}.get(next(case.model.parameters()).dtype, 2.0**-24)
    x = case.inputs(3)
    for index, phase in enumerate(history[:3]):
        adapter = attach(
            case, f"p{index}", rank, alpha, phase, type=type_, rslora=rslora
        )
        train(case, adapter, seed=phase)
        live = case.model(x)
        mgk.merge(case.model, adapter)
        assert (case.model(x) - live).norm() <= unit * 40 * 6 * 8 * live.norm()
