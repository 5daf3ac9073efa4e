"""All or nothing: whatever goes wrong, at whatever instant, the model is bit-identical to before."""

import sys
from itertools import count

import pytest
import torch
from torch import nn

from mgk_core.contract.adapter import state_of
from mgk_core.contract.errors import MergeError, StoreError
from mgk_core.testing.history import same_bits, shake, snapshot
from mgk_core.testing.zoo import Case, make


def deep(dtype=torch.float32, layers=50):
    """Return a case of many linear layers."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(layers))).to(
        dtype
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Case(
        "linear",
        model,
        lambda generator, batch: torch.randn(batch, 6, generator=generator),
    )


def whole_state(case):
    """Everything that a merge may touch, with the identity of what holds it."""
    residuals = state_of(case.model).residuals
    return (
        snapshot(case),
        {n: (id(t), t.clone()) for n, t in residuals.items()},
        merged_now(case),
    )


def merged_now(case):
    """Names of adapters that are attached and merged."""
    state = state_of(case.model)
    return [a.name for a in state.merged if any(a is b for b in state.adapters)]


def assert_untouched(before, case):
    weights, residuals, merged = before
    assert not same_bits(weights, case)
    now = state_of(case.model).residuals
    assert now.keys() == residuals.keys()
    assert all(
        id(now[n]) == i and torch.equal(now[n], t) for n, (i, t) in residuals.items()
    )
    assert merged_now(case) == merged


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("undo", ["memory", "disk"])
def test_a_bad_number_in_any_one_of_50_layers_leaves_the_model_as_it_was(
    value, undo, put_on, fold
):
    """50 of 50: the refusal names the weight, and no bit of any weight has changed."""
    case = deep()
    adapter = put_on(case.model)
    shake(adapter)
    before = whole_state(case)
    for layer in range(50):
        a = adapter.pair(f"{layer}.weight").a.data
        kept, a[1, 2] = a[1, 2].item(), value
        with pytest.raises(
            MergeError, match=rf"^{layer}.weight: the adapter's delta is not finite"
        ):
            fold(case.model, adapter, undo=undo)
        assert_untouched(before, case)
        a[1, 2] = kept
    fold(case.model, adapter)  # and with all numbers good it merges


def test_a_base_that_is_not_finite_is_named(put_on, fold):
    """The message tells the base's fault from the adapter's."""
    case = deep(layers=2)
    case.model[1].weight.data[0, 0] = float("nan")
    adapter = put_on(case.model)
    shake(adapter)
    before = whole_state(case)
    with pytest.raises(
        MergeError, match=r"^1.weight: the base's own weight is not finite"
    ):
        fold(case.model, adapter)
    assert_untouched(before, case)


def test_a_sum_that_the_dtype_cannot_hold_is_refused(put_on, fold):
    """fp16 ends at 65504: W' would be infinite."""
    case = deep(torch.float16, layers=2)
    case.model[1].weight.data.fill_(6e4)
    adapter = put_on(case.model)
    shake(adapter)
    adapter.pair("1.weight").a.data.fill_(100.0)
    adapter.pair("1.weight").b.data.fill_(20.0)
    before = whole_state(case)
    with pytest.raises(
        MergeError, match=r"^1.weight: the merged weight does not fit float16"
    ):
        fold(case.model, adapter)
    assert_untouched(before, case)


class Interrupter:
    """Raise at the n-th line that runs in mgk_merge or mgk_core.model.lowrank."""

    def __init__(self, at, error=KeyboardInterrupt):
        self.left, self.error = at, error

    def __enter__(self):
        sys.settrace(self.call)

    def __exit__(self, *_):
        sys.settrace(None)

    def call(self, frame, event, arg):
        name = frame.f_code.co_filename
        return self.line if "mgk_merge" in name or "lowrank" in name else None

    def line(self, frame, event, arg):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise self.error
        return self.line


@pytest.mark.parametrize("undo", ["memory", "disk"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_at_any_line_of_a_merge_leaves_the_model_as_it_was(
    undo, error, put_on, take_off, fold
):
    """Ctrl-C or memory running out at every single line, the second phase's residual included."""
    case = deep(torch.bfloat16, layers=2)
    first = put_on(case.model, "first")
    shake(first)
    fold(case.model, first)
    take_off(case.model, first)
    adapter = put_on(case.model, "second", seed=1)
    shake(adapter, seed=1)
    before = whole_state(case)
    lines = 0
    for at in count(1):
        try:
            with Interrupter(at, error):
                fold(case.model, adapter, undo=undo, chunk_rows=4)
        except error:
            lines += 1
            assert torch.is_grad_enabled()
            assert_untouched(before, case)
        else:
            break
    assert lines > 200


def test_a_second_interrupt_while_restoring_does_not_stop_it(put_on, fold, monkeypatch):
    """Ctrl-C twice: the restoration is finished first."""
    case = deep(layers=4)
    adapter = put_on(case.model)
    shake(adapter)
    before = whole_state(case)
    adapter.pair("3.weight").a.data.fill_(float("nan"))
    from mgk_merge.undo import MemoryKeeper

    original, calls = MemoryKeeper.put_back, []

    def put_back(self):
        calls.append(1)
        if len(calls) < 3:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(MemoryKeeper, "put_back", put_back)
    with pytest.raises(MergeError):
        fold(case.model, adapter)
    assert len(calls) == 3
    assert_untouched(before, case)


class Wrong:
    """An adapter around another one whose merged_weight misbehaves."""

    row_separable = True

    def __init__(self, inner, merged_weight):
        self.name, self.identity, self.inner, self.merged_weight = (
            inner.name,
            inner.identity,
            inner,
            merged_weight,
        )

    def targets(self):
        return self.inner.targets()

    def parameters(self):
        return self.inner.parameters()


@pytest.mark.parametrize(
    ("merged_weight", "error", "message"),
    [
        (lambda name, weight, rows: weight[:1], MergeError, "returned shape"),
        (
            lambda name, weight, rows: weight.fill_(float("nan")),
            MergeError,
            "not finite",
        ),
        (lambda name, weight, rows: 1 / 0, ZeroDivisionError, "division"),
    ],
)
@pytest.mark.parametrize("undo", ["memory", "disk"])
def test_an_adapter_that_misbehaves_harms_nothing(
    merged_weight, error, message, undo, put_on, fold
):
    """Wrong shapes, writing into the given block, exceptions: the error comes out, the model is whole."""
    case = deep(layers=2)
    wrong = Wrong(put_on(case.model), merged_weight)
    state_of(case.model).adapters[:] = [wrong]
    before = whole_state(case)
    with pytest.raises(error, match=message):
        fold(case.model, wrong, undo=undo)
    assert_untouched(before, case)


@pytest.mark.parametrize("undo", ["memory", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rollback_restores_every_bit_and_the_merge_can_be_repeated(
    undo, dtype, put_on, take_off, fold
):
    """restore() after a second phase gives the first phase's weights and residual; merging again the same bits."""
    case = make("mixed", dtype=dtype, layers=3)
    for name in ("first", "second"):
        adapter = put_on(case.model, name)
        shake(adapter)
        before = whole_state(case)
        report = fold(case.model, adapter, undo=undo)
        merged = snapshot(case)
        report.undo.restore()
        assert_untouched_contents(before, case)
        report = fold(case.model, adapter, undo=undo)
        assert not same_bits(merged, case)
        report.undo.release()
        take_off(case.model, adapter)


def assert_untouched_contents(before, case):
    weights, residuals, merged = before
    assert not same_bits(weights, case)
    now = state_of(case.model).residuals
    assert now.keys() == residuals.keys()
    assert all(torch.equal(now[n], t) for n, (_, t) in residuals.items())
    assert merged_now(case) == merged


def test_undo_works_once(put_on, fold):
    """A second restore, or one after release, is refused."""
    case = deep(layers=2)
    adapter = put_on(case.model)
    shake(adapter)
    undo = fold(case.model, adapter).undo
    undo.restore()
    with pytest.raises(MergeError, match="undone or released already"):
        undo.restore()
    undo = fold(case.model, adapter).undo
    undo.release()
    with pytest.raises(MergeError, match="undone or released already"):
        undo.restore()


def test_merging_twice_is_refused(put_on, take_off, fold):
    """While attached, and after it was taken off."""
    case = deep(layers=2)
    adapter = put_on(case.model)
    shake(adapter)
    fold(case.model, adapter)
    before = whole_state(case)
    with pytest.raises(MergeError, match="is merged already"):
        fold(case.model, adapter)
    take_off(case.model, adapter)
    with pytest.raises(MergeError, match="is not attached to this model"):
        fold(case.model, adapter)
    assert not same_bits(before[0], case)


def test_the_order_counts_where_an_adapter_is_more_than_an_added_delta(
    put_on, take_off, fold
):
    """DoRA on top of LoRA: LoRA first, or the merged model would not be the live one."""
    case = make("linear", dtype=torch.float64)
    first, second = (
        put_on(case.model, "first"),
        put_on(case.model, "second", type="dora"),
    )
    shake(first)
    shake(second, seed=1)
    x = case.inputs(1)
    live = case.model(x)
    with pytest.raises(MergeError, match="merge or detach 'first' first"):
        fold(case.model, second)
    fold(case.model, first)
    take_off(case.model, first)
    fold(case.model, second)
    take_off(case.model, second)
    torch.testing.assert_close(case.model(x), live, rtol=1e-12, atol=1e-12)


def test_added_deltas_may_be_merged_in_any_order(put_on, take_off, fold):
    """Two LoRAs: the second first."""
    case = make("linear", dtype=torch.float64)
    first, second = put_on(case.model, "first"), put_on(case.model, "second", seed=1)
    shake(first)
    shake(second, seed=1)
    x = case.inputs(1)
    live = case.model(x)
    for adapter in (second, first):
        fold(case.model, adapter)
        take_off(case.model, adapter)
    torch.testing.assert_close(case.model(x), live, rtol=1e-12, atol=1e-12)


def test_packed_weights_are_refused(put_on, fold):
    """A quantized weight is no plain tensor of numbers."""
    case = deep(layers=1)
    adapter = put_on(case.model)
    case.model[0].weight = nn.Parameter(
        torch.zeros(6, 6, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(MergeError, match="0.weight: its numbers are packed"):
        fold(case.model, adapter)


def test_two_targets_that_are_one_tensor_are_refused(put_on, fold):
    """Tied after attaching: the delta would be merged twice."""
    case = deep(layers=2)
    adapter = put_on(case.model)
    case.model[1].weight = case.model[0].weight
    with pytest.raises(MergeError, match="are one tensor"):
        fold(case.model, adapter)


def test_the_spool_is_one_safetensors_file_that_goes_away(put_on, fold, tmp_path):
    """undo = 'disk': the old weights stand in a file that safetensors reads, until release."""
    from safetensors.torch import load_file

    case = make("mixed", dtype=torch.bfloat16, layers=3)
    before = snapshot(case)
    adapter = put_on(case.model)
    shake(adapter)
    report = fold(case.model, adapter, undo="disk")
    kept = load_file(tmp_path / "spool" / "undo.safetensors")
    assert kept.keys() == adapter.targets().keys()
    assert all(torch.equal(kept[n], before[n]) for n in kept)
    report.undo.release()
    assert not (tmp_path / "spool").exists()


def test_a_disk_that_is_full_is_said_and_nothing_is_left(
    put_on, fold, tmp_path, monkeypatch
):
    """Too little space is seen before the first write; a write that fails restores everything."""
    import errno
    import os
    import shutil

    case = deep(layers=3)
    adapter = put_on(case.model)
    shake(adapter)
    before = whole_state(case)
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil,
            "disk_usage",
            lambda path: os.statvfs_result and type("U", (), {"free": 10})(),
        )
        with pytest.raises(StoreError, match=r"0.00 GB free.*undo = 'memory'"):
            fold(case.model, adapter, undo="disk")
    assert_untouched(before, case)
    original, calls = os.pwrite, []

    def pwrite(*args):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StoreError, match="No space left"):
        fold(case.model, adapter, undo="disk")
    assert_untouched(before, case)
    assert not (tmp_path / "spool").exists()


def test_a_proposal_that_refuses_is_refused(put_on):
    """What `mgk_propose_merge` refused is not merged, whoever calls the rule."""
    from mgk_core.contract.outcome import Proposal
    from mgk_merge.exact import merge
    from mgk_merge.spec import MergeSpec

    case = deep(layers=1)
    adapter = put_on(case.model)
    shake(adapter)
    with pytest.raises(MergeError, match="is refused: the probe was lost"):
        merge(
            case.model,
            adapter,
            Proposal(refuse="the probe was lost"),
            MergeSpec(type="exact"),
        )
