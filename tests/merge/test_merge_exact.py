"""The rule ``exact``: merged equals live, rounding is measured, the residual keeps what it dropped."""

import pytest
import torch
from torch import nn

from mgk_core.contract.adapter import base_state_dict, state_of
from mgk_core.contract.errors import MergeError
from mgk_core.testing.history import same_bits, shake, snapshot, train
from mgk_core.testing.zoo import KINDS, make

EPS = {torch.float64: 2.2e-16, torch.float32: 1.2e-7}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"type": "dora"}, {"init": "pissa"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merged_equals_live_over_three_trained_phases(
    kind, options, dtype, put_on, take_off, fold
):
    """‖merged − live‖ ≤ eps · inner dimension · layers · ‖live‖ after each of three phases."""
    case = make(kind, dtype=dtype, layers=3)
    x = case.inputs(9)
    for phase in range(3):
        adapter = put_on(case.model, f"phase{phase}", seed=phase, **options)
        train(case, adapter, seed=phase)
        live = case.model(x)
        report = fold(case.model, adapter)
        with adapter.disabled():
            merged = case.model(x)
        take_off(case.model, adapter)
        assert torch.equal(case.model(x), merged)
        assert (merged - live).norm() <= EPS[dtype] * 36 * 5 * live.norm()
        # the delta's own relative size is above 1e-3, so fp32 keeps it to eps / 1e-3 and better
        assert report.kept == pytest.approx(1.0, abs=1e-4) == report.kept_total
        assert report.relative > 1e-3
        assert all(
            w.max_error == w.bound == 0.0 for w in report.weights
        )  # the sum is taken in the weight's precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "mixed"])
def test_a_rounded_weight_is_within_half_a_unit_and_the_residual_holds_the_rest(
    kind, dtype, put_on, fold
):
    """|S − W'| ≤ half an ulp of W', and W' + residual = W + residual + Δ in fp32."""
    case = make(kind, dtype=dtype, layers=3)
    adapter = put_on(case.model)
    shake(adapter)
    before = snapshot(case)
    new = {
        n: adapter.merged_weight(n, t.parameter.detach().float())
        for n, t in adapter.targets().items()
    }
    report = fold(case.model, adapter)
    after, residuals = base_state_dict(case.model), state_of(case.model).residuals
    assert residuals.keys() == new.keys()
    for figures in report.weights:
        name = figures.name
        assert figures.max_error <= figures.bound
        assert residuals[name].abs().max() == pytest.approx(figures.max_error)
        total = after[name].float() + residuals[name]
        torch.testing.assert_close(
            total, new[name], rtol=0, atol=4 * 1.2e-7 * before[name].abs().max().item()
        )
        assert torch.equal(after[name], total.to(dtype))
        assert figures.kept_total == pytest.approx(1.0, abs=1e-4)


def phases(model, put_on, take_off, fold, count, **rule):
    """Merge ``count`` deltas of ‖ΔW‖/‖W‖ = 1e-3 into a bf16 weight; return (sum of the deltas, what arrived)."""
    start = model[0].weight.detach().float().clone()
    wanted = torch.zeros_like(start)
    for phase in range(count):
        adapter = put_on(model, f"p{phase}", seed=phase)
        shake(adapter, seed=phase, size=1.0)
        pair = adapter.pair("0.weight")
        delta = pair.scale * pair.b @ pair.a
        pair.b.data.mul_(1e-3 * start.norm() / delta.norm())
        wanted += (pair.scale * pair.b @ pair.a).detach()
        fold(model, adapter, **rule)
        take_off(model, adapter)
    return wanted, start


def share(part, whole):
    return (
        torch.dot(part.flatten(), whole.flatten())
        / torch.dot(whole.flatten(), whole.flatten())
    ).item()


def test_ten_small_bf16_phases_arrive_thanks_to_the_residual(put_on, take_off, fold):
    """At 1e-3 a phase: weight + residual keep ≥ .99 of the total delta, the visible weight ≥ .9; without, under .8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(120, 200, bias=False)).bfloat16()
    plain = nn.Sequential(nn.Linear(120, 200, bias=False)).bfloat16()
    plain.load_state_dict(model.state_dict())
    wanted, start = phases(model, put_on, take_off, fold, 10)
    visible = model[0].weight.detach().float() - start
    residual = state_of(model).residuals["0.weight"]
    assert share(visible + residual, wanted) >= 0.99
    assert share(visible, wanted) >= 0.9
    phases(plain, put_on, take_off, fold, 10, residual=False)
    assert share(plain[0].weight.detach().float() - start, wanted) < 0.8
    assert not state_of(plain).residuals


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "attention"])
@pytest.mark.parametrize("rows", [1, 2, 5, 10_000])
def test_row_blocks_give_the_same_bits_as_all_rows_at_once(kind, rows, put_on, fold):
    """chunk_rows changes memory and speed, not one bit of the result (integers: every sum is exact)."""
    whole, parts = (make(kind, dtype=torch.float32) for _ in range(2))
    for case, chunk in ((whole, 0), (parts, rows)):
        adapter = put_on(case.model, alpha=6.0)
        integers(case.model)
        fold(case.model, adapter, chunk_rows=chunk)
    assert not same_bits(snapshot(whole), parts)


def integers(model):
    """Give every parameter small whole values, by its place: sums of products are then exact."""
    for index, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(index)
        parameter.data.copy_(torch.randint(-4, 5, parameter.shape, generator=generator))


@pytest.mark.parametrize("rows", [0, 5, 16, 20])
@pytest.mark.parametrize("rank", [3, 17])
def test_rows_a_multiple_of_4_kb_apart_merge_to_the_exact_sum(rows, rank, put_on, fold):
    """Such a product is made a few rows at a time; with whole numbers W' is W + scale · B A to the bit."""
    model = nn.Sequential(nn.Linear(1024, 37, bias=False))
    model.requires_grad_(False)
    adapter = put_on(model, rank=rank, alpha=2.0 * rank)
    integers(model)
    pair = adapter.pair("0.weight")
    expected = model[0].weight.double() + 2.0 * pair.b.double() @ pair.a.double()
    report = fold(model, adapter, chunk_rows=rows)
    assert torch.equal(model[0].weight.double(), expected)
    assert report.kept == 1.0


def test_dora_on_a_transposed_weight_is_merged_in_one_block(put_on, fold):
    """Its norms run over the stored rows; chunk_rows must not cut them."""
    case = make("transposed", dtype=torch.float64)
    adapter = put_on(case.model, type="dora")
    assert not adapter.row_separable
    shake(adapter)
    x = case.inputs(1)
    live = case.model(x)
    fold(case.model, adapter, chunk_rows=2)
    with adapter.disabled():
        torch.testing.assert_close(case.model(x), live, rtol=1e-12, atol=1e-12)


def test_contents_are_exchanged_in_place(put_on, fold):
    """Parameter objects and their memory stay: ties, optimizers and compiled code go on."""
    case = make("mixed", layers=3)
    adapter = put_on(case.model)
    shake(adapter)
    before = {
        n: (id(t.parameter), t.parameter.data_ptr())
        for n, t in adapter.targets().items()
    }
    view = case.model[0].weight.detach()
    fold(case.model, adapter)
    assert {
        n: (id(t.parameter), t.parameter.data_ptr())
        for n, t in adapter.targets().items()
    } == before
    assert torch.equal(view, case.model[0].weight)


def test_a_weight_in_another_memory_format_is_merged(put_on, fold):
    """channels_last convolutions are not contiguous; the result and the way back are the same."""
    case = make("conv2d")
    case.model.to(memory_format=torch.channels_last)
    before = snapshot(case)
    adapter = put_on(case.model)
    shake(adapter)
    expected = adapter.merged_weight("0.weight", case.model[0].weight.detach().clone())
    report = fold(case.model, adapter, undo="disk", chunk_rows=2)
    torch.testing.assert_close(case.model[0].weight, expected)
    assert case.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    report.undo.restore()
    assert not same_bits(before, case)


@pytest.mark.parametrize("scale", [0.5, -2.0])
def test_the_proposals_scale_multiplies_the_delta(scale, put_on, fold):
    """W' = W + scale · Δ, for additive adapters and others."""
    for options in ({}, {"type": "dora"}):
        case = make("linear", dtype=torch.float64)
        adapter = put_on(case.model, **options)
        shake(adapter)
        old = case.model[0].weight.detach().clone()
        delta = adapter.merged_weight("0.weight", old) - old
        report = fold(case.model, adapter, scale=scale)
        torch.testing.assert_close(
            case.model[0].weight.data, old + scale * delta, rtol=1e-12, atol=1e-12
        )
        assert report.weights[0].delta_norm == pytest.approx(
            abs(scale) * delta.norm().item()
        )


class OnInputs:
    """ΔW → ΔW · M, on factors and on dense deltas."""

    name = "inputs"

    def __init__(self, matrix):
        self.matrix, self.dense = matrix, 0

    def right(self, weight, a):
        return a @ self.matrix.to(a.dtype)

    def delta(self, weight, delta, rows):
        self.dense += 1
        return delta @ self.matrix.to(delta.dtype)


class OnOutputs:
    """Rows times a vector: acts on dense deltas only, block by block."""

    name = "outputs"

    def __init__(self, factors):
        self.factors = factors

    def delta(self, weight, delta, rows):
        part = self.factors if rows is None else self.factors[rows]
        return delta * part[:, None].to(delta.dtype)


@pytest.mark.parametrize(
    "kind", ["linear", "transposed", "conv1d", "embedding", "grouped", "experts"]
)
@pytest.mark.parametrize("options", [{}, {"type": "dora"}, {"init": "pissa"}], ids=str)
def test_transforms_change_the_delta_in_out_by_in_orientation(
    kind, options, put_on, fold
):
    """Factor transforms act on A where there are factors, dense ones on rows of ΔW: the same result."""
    case = make(kind, dtype=torch.float64)
    adapter = put_on(case.model, **options)
    shake(adapter)
    (name, target), *_ = adapter.targets().items()
    old = target.parameter.detach().clone()
    delta = adapter.merged_weight(name, old) - old
    matrix = (
        delta.t()
        if target.transposed
        else delta.reshape(-1, delta.shape[-1])
        if kind == "experts"
        else delta.flatten(1)
    )
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(
        matrix.shape[1], matrix.shape[1], generator=generator, dtype=torch.float64
    )
    rows = torch.randn(matrix.shape[0], generator=generator, dtype=torch.float64)
    expected = (matrix @ mix) * rows[:, None] * 0.5
    expected = expected.t() if target.transposed else expected.reshape(old.shape)
    fold(
        case.model,
        adapter,
        transforms=(OnInputs(mix), OnOutputs(rows)),
        scale=0.5,
        chunk_rows=3,
    )
    torch.testing.assert_close(
        target.parameter.data, old + expected, rtol=1e-10, atol=1e-10
    )


def test_a_factor_transform_alone_needs_no_dense_delta(put_on, fold):
    """For a low-rank adapter only ``right`` is called; without factors only ``delta``."""
    for options, calls in (({}, 0), ({"type": "dora"}, 1)):
        case = make("linear", dtype=torch.float64)
        adapter = put_on(case.model, **options)
        shake(adapter)
        old = case.model[0].weight.detach().clone()
        delta = adapter.merged_weight("0.weight", old) - old
        transform = OnInputs(
            torch.randn(
                13, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            )
        )
        fold(case.model, adapter, transforms=(transform,))
        torch.testing.assert_close(
            case.model[0].weight.data,
            old + delta @ transform.matrix,
            rtol=1e-10,
            atol=1e-10,
        )
        assert transform.dense == calls


def test_a_bias_is_merged_untransformed(put_on, fold):
    """Biases have no inputs that a transform could act on."""
    case = make("linear", dtype=torch.float64)
    adapter = put_on(case.model, bias=True)
    shake(adapter)
    old = case.model[0].bias.detach().clone()
    new = adapter.merged_weight("0.bias", old)
    fold(case.model, adapter, transforms=(OnInputs(torch.zeros(13, 13)),))
    assert torch.equal(case.model[0].bias.data, new)


def test_the_report_is_what_a_plain_computation_gives(put_on, fold):
    """kept, norms, errors and bound of a bf16 weight against the formulas in float64."""
    case = make("linear", dtype=torch.bfloat16)
    adapter = put_on(case.model)
    shake(adapter, size=0.02)
    old = case.model[0].weight.detach().double()
    delta = adapter.merged_weight("0.weight", old) - old
    report = fold(case.model, adapter, chunk_rows=2)
    new = case.model[0].weight.detach().double()
    figures = report.weights[0]
    assert figures.delta_norm == pytest.approx(delta.norm().item(), rel=1e-5)
    assert figures.weight_norm == pytest.approx(old.norm().item(), rel=1e-5)
    assert (
        figures.relative
        == pytest.approx((delta.norm() / old.norm()).item(), rel=1e-5)
        == report.relative
    )
    assert (
        figures.kept == pytest.approx(share(new - old, delta), rel=1e-5) == report.kept
    )
    assert figures.kept_total == pytest.approx(1.0, rel=1e-5)
    assert (
        figures.max_error
        == pytest.approx((old + delta - new).abs().max().item(), rel=1e-3)
        == report.max_error
    )
    assert figures.bound == 2.0 ** (torch.floor(torch.log2(new.abs().max())).item() - 8)
    assert (figures.dtype, figures.shape) == ("bfloat16", (7, 13))


def test_a_residual_of_bf16_keeps_nearly_all(put_on, fold):
    """residual_dtype = 'bf16' halves the memory and drops at most its own last bit."""
    case = make("linear", dtype=torch.bfloat16)
    adapter = put_on(case.model)
    shake(adapter, size=0.02)
    report = fold(case.model, adapter, residual_dtype="bf16")
    assert state_of(case.model).residuals["0.weight"].dtype == torch.bfloat16
    assert report.kept_total == pytest.approx(1.0, abs=2**-8) != report.kept


@pytest.mark.parametrize("residual", [True, False])
def test_a_residual_left_from_before_is_used_up_where_none_is_kept(
    residual, put_on, take_off, fold
):
    """A model cast to fp32 (or residual = false) takes the old residual into the sum and keeps none."""
    case = make("linear", dtype=torch.bfloat16)
    first = put_on(case.model, "a")
    shake(first, size=0.02)
    fold(case.model, first)
    take_off(case.model, first)
    held = state_of(case.model).residuals["0.weight"].clone()
    if residual:
        case.model.float()
    old = case.model[0].weight.detach().float()
    second = put_on(case.model, "b", seed=1)
    shake(second, seed=1, size=0.02)
    wanted = second.merged_weight("0.weight", old) + held
    report = fold(case.model, second, residual=residual)
    assert not state_of(case.model).residuals
    torch.testing.assert_close(
        case.model[0].weight.data, wanted.to(case.model[0].weight.dtype)
    )
    report.undo.restore()
    assert torch.equal(state_of(case.model).residuals["0.weight"], held)


def test_an_untrained_adapter_is_refused(put_on, fold):
    """B = 0 everywhere: nothing to merge, and the message says so."""
    case = make("linear")
    adapter = put_on(case.model)
    with pytest.raises(MergeError, match="the delta of every weight is zero"):
        fold(case.model, adapter)


def test_one_zero_delta_among_others_is_a_warning(put_on, fold):
    """A layer that learned nothing is named."""
    case = make("linear", layers=3)
    adapter = put_on(case.model)
    shake(adapter)
    adapter.pair("2.weight").b.data.zero_()
    assert fold(case.model, adapter).warnings == ("2.weight: the delta is zero",)


def test_a_delta_below_the_weights_precision_is_held_by_the_residual_and_said(
    put_on, fold
):
    """bf16 cannot show 1e-5 of a weight: a warning with the residual, a refusal without."""
    for residual in (True, False):
        case = make("linear", dtype=torch.bfloat16)
        case.model[0].weight.data.fill_(1.0)
        before = snapshot(case)
        adapter = put_on(case.model)
        shake(adapter)
        adapter.pair("0.weight").b.data.mul_(1e-4)
        if residual:
            report = fold(case.model, adapter)
            assert report.warnings == (
                "0.weight: the delta is below the weight's precision: it is held by the residual alone",
            )
            assert (report.kept, report.kept_total) == (
                0.0,
                pytest.approx(1.0, rel=0.01),
            )  # fp32 rounds 1 + 1e-5 too
        else:
            with pytest.raises(MergeError, match="no weight can hold its delta"):
                fold(case.model, adapter, residual=False)
        assert not same_bits(before, case)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_very_small_and_very_large_deltas_are_measured_too(size, put_on, fold):
    """Sums of squares outside of fp32's range are taken again in float64."""
    case = make("linear")
    case.model[0].weight.data.mul_(size)
    adapter = put_on(case.model)
    shake(adapter)
    adapter.pair("0.weight").b.data.mul_(size)
    report = fold(case.model, adapter)
    assert report.kept == pytest.approx(1.0, rel=1e-5)
    assert report.relative > 1e-3
