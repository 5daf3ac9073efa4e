"""A training step never reads from its device: on tensors without contents, and on CUDA by torch's own check."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mgk
from mgk_core.contract.bundle import Tokens
from mgk_core.contract.context import PhaseContext, StepContext
from mgk_core.contract.settings import PhaseConfig, RunConfig
from mgk_core.contract.specs import Spec
from mgk_hf.batch import predictors
from mgk_hf.layout import layout_of
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_sgd.optimizers import make_optimizer
from mgk_sgd.specs import AdamwSpec, StandardStepSpec
from mgk_sgd.step import StandardStep

META = torch.device("meta")
GIVEN = Spec(type="given")
EXAMPLES = [
    Tokens(tuple(range(5, 25)), tuple(range(5, 25))),
    Tokens(tuple(range(30, 75)), (-100,) * 10 + tuple(range(40, 75))),
]


def step_on(device: torch.device, **options) -> tuple[StandardStep, PhaseContext]:
    """Return the standard step of a phase of tiny-gemma with LoRA, on a device."""
    spec = HfSpec(type="hf", id="tiny-gemma", head="exact", compute="float32")
    bundle = build(spec, torch.device("cpu"))
    adapter = mgk.attach(bundle.model, "lora", rank=4, targets=["all-linear"])
    bundle.model.to(device)
    bundle.device = device
    optimizer = AdamwSpec(type="adamw", clip=1.0, lr=1e-3, **options)
    phase = PhaseConfig(
        name="p", data=GIVEN, adapter=GIVEN, optimizer=optimizer, merge=GIVEN,
        step=StandardStepSpec(type="standard", gradients="autograd"),
    )  # fmt: skip
    ctx = PhaseContext(
        config=RunConfig(name="r", base=GIVEN, phases=(phase,)), phase=phase, index=0,
        bundle=bundle, device=device, directory=Path(), adapter=adapter, steps=10,
    )  # fmt: skip
    ctx.optimizer = make_optimizer(adapter, optimizer)
    bundle.model.train()
    return StandardStep(StepContext(ctx, ())), ctx


def test_a_step_needs_no_number_from_its_device():
    """On meta tensors, which have shapes only, every read of a number raises; a whole step does not."""
    step, ctx = step_on(META)
    batch = ctx.bundle.pack(EXAMPLES)
    assert batch.input_ids.is_meta
    out = step([batch, batch], 0)
    for figure in (out.loss, out.grad_norm, out.count, out.skipped):
        assert isinstance(figure, torch.Tensor)
        assert figure.is_meta
        assert figure.shape == ()


def test_the_check_finds_a_read():
    """What was worked out from the batch on the device before this was done would have raised."""
    step, ctx = step_on(META)
    batch = ctx.bundle.pack(EXAMPLES)
    bare = type(batch)(
        batch.input_ids, batch.labels, batch.position_ids, batch.segment_ids
    )
    with pytest.raises((NotImplementedError, RuntimeError)):
        step([bare], 0)


def test_what_is_worked_out_beforehand_is_what_the_batch_says():
    """Moved to another device, predictors and layout are those of the batch on the CPU."""
    ctx = step_on(torch.device("cpu"))[1]
    plain = ctx.bundle.pack(EXAMPLES)
    ctx.bundle.device = META
    moved = ctx.bundle.pack(EXAMPLES)
    for found, wanted in zip(predictors(moved), predictors(plain), strict=True):
        assert found.is_meta
        assert found.shape == wanted.shape
    assert layout_of(moved).rows.shape == layout_of(plain).rows.shape
    assert layout_of(moved).plain is layout_of(plain).plain


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@CUDA
def test_steps_on_cuda_do_not_synchronize():
    """Torch's own check, in the mode in which every synchronization is an error."""
    step, ctx = step_on(torch.device("cuda"))
    batch = ctx.bundle.pack(EXAMPLES)
    for i in range(3):
        step([batch], i)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(3, 6):
            step([ctx.bundle.pack(EXAMPLES)], i)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@CUDA
def test_adamw_is_fused_on_cuda():
    """One kernel for all parameters, which also takes the flag of a step that is left out."""
    step, _ = step_on(torch.device("cuda"))
    assert all(group["fused"] for group in step.optimizer.param_groups)
    assert step.update.__qualname__.startswith("_flagged")


@pytest.mark.gpu
@CUDA
def test_a_step_on_cuda_is_the_step_on_the_cpu():
    """The same loss and gradient norm, up to fp32's rounding in another order."""
    found = []
    for device in ("cpu", "cuda"):
        step, ctx = step_on(torch.device(device))
        out = step([ctx.bundle.pack(EXAMPLES)], 0)
        found.append((float(out.loss), float(out.grad_norm)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.gpu
@CUDA
def test_a_run_on_cuda_resumes_to_the_same_bits(tmp_path):
    """Interrupted between two checkpoints and resumed, with run.deterministic as it is by default."""
    from mgk_core.contract.errors import Interrupted
    from mgk_core.record.ledger import read_ledger
    from mgk_core.run.runner import resume_run, run_pipeline

    overrides = {"run.device": "cuda", "defaults.train.checkpoint_steps": 10}

    def pull(event):
        if (event["event"], event.get("step")) == ("checkpoint", 30):
            raise KeyboardInterrupt

    run_pipeline("textmodel", out=tmp_path / "whole", overrides=overrides)
    with pytest.raises(Interrupted):
        run_pipeline("textmodel", out=tmp_path / "cut", overrides=overrides, sink=pull)
    resume_run(tmp_path / "cut")
    ends = [
        [(p.adapter, p.merged) for p in read_ledger(tmp_path / name).phases]
        for name in ("whole", "cut")
    ]
    assert ends[0] == ends[1]
