"""The optimizers of libraries: equal to the library's own on the same gradients, evaluated where they must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mgk_core.contract.errors import Interrupted
from mgk_core.record.ledger import read_ledger
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_sgd.step import StandardStep


def adamw_8bit(parameters: Any, **keys: Any) -> Any:
    """Return the library's own."""
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(
        parameters, min_8bit_size=64, **keys
    )


def schedule_free(parameters: Any, **keys: Any) -> Any:
    """Return the library's own, in the mode for training."""
    optimizer = pytest.importorskip("schedulefree").AdamWScheduleFree(
        parameters, **keys
    )
    optimizer.train()
    return optimizer


LIBRARIES: dict[str, Any] = {
    "adamw-8bit": (adamw_8bit, {"min_8bit_size": 64}),
    "adamw-schedule-free": (schedule_free, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "muon": (
        lambda ps, **k: torch.optim.Muon(ps, adjust_lr_fn="match_rms_adamw", **k),
        {},
    ),
}


@pytest.mark.parametrize("type_", LIBRARIES)
def test_a_phase_takes_the_librarys_own_steps(
    make_phase: Any, batches: Any, type_: str
) -> None:
    """Ten steps by the standard step, with warm-up, are ten steps of the library's on autograd's gradients."""
    make, keys = LIBRARIES[type_]
    common = {"lr": 0.01, "weight_decay": 0.1}
    table = {"type": type_, "warmup_steps": 4, **common, **keys}
    ctx = make_phase({"optimizer": table, "step": {"gradients": "autograd"}})
    own = make_phase({"optimizer": table})
    step = StandardStep(ctx)
    parameters = own.phase.adapter.parameters()
    optimizer = make(parameters, **common)
    for i, batch in enumerate(batches(ctx, 10)):
        step([batch], i)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1.0, (i + 1) / 4)
        total, count = own.phase.bundle.loss(batch)
        gradients = torch.autograd.grad(total, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / count
        optimizer.step()
    for ours, theirs in zip(ctx.phase.adapter.parameters(), parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_evaluating_an_average_leaves_training_alone(
    make_phase: Any, batches: Any
) -> None:
    """Inside the block the parameters are the library's average; afterwards the bits are as before."""
    table = {"optimizer": {"type": "adamw-schedule-free", "lr": 0.05}}
    ctx, other = make_phase(table), make_phase(table)
    step, reference = StandardStep(ctx), StandardStep(other)
    for i, batch in enumerate(batches(ctx, 6)):
        for each in (step, reference):
            each([batch], i)
        before = [p.detach().clone() for p in step.parameters]
        with step.averaged():
            inside = [p.detach().clone() for p in step.parameters]
        assert all(map(torch.equal, before, step.parameters))
        state = reference.optimizer.state
        for p, found in zip(reference.parameters, inside, strict=True):
            # y = 0.9 x + 0.1 z, so x = y + (z - y) · (1 - 1 / 0.9): schedulefree's own eval()
            torch.testing.assert_close(
                found, p + (state[p]["z"] - p) * (1 - 1 / 0.9), rtol=1e-5, atol=1e-7
            )
    assert all(map(torch.equal, step.parameters, reference.parameters))
    step.finish()
    assert all(map(torch.equal, step.parameters, inside))


NAMES = ("plain_text", "medical_dictionary", "mcq")


def settings(type_: str) -> dict[str, Any]:
    """Return overrides for short phases with an optimizer, which keep the best step by dev loss."""
    optimizer = {"type": type_, "lr": 0.02, "warmup_ratio": 0.1, "lr_ratio": 4.0}
    train = {"steps": 12, "eval_every": 5, "keep": "best", "checkpoint_steps": 4}
    found: dict[str, Any] = {"defaults.gate.min-gain": False, "run.save_model": False}
    for name in NAMES:
        found |= {f"phases.{name}.optimizer": optimizer, f"phases.{name}.train": train}
    return found


def heads(run: Path) -> list[tuple[Any, ...]]:
    """Return the digests of every phase of a run."""
    return [(p.phase, p.adapter, p.merged) for p in read_ledger(run).phases]


@pytest.mark.parametrize("type_", ["adamw-schedule-free", "muon", "adamw-8bit"])
def test_a_run_that_is_interrupted_ends_in_the_same_bits(
    tmp_path: Path, type_: str
) -> None:
    """Interrupted at the second checkpoint of the second phase, resumed, against a run without a break."""

    def pull(event: Any) -> None:
        where = {"event": "checkpoint", "phase": "medical_dictionary", "step": 8}
        if where.items() <= event.items():
            raise KeyboardInterrupt

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    overrides = settings(type_)
    run_pipeline("textmodel", out=whole, overrides=overrides)
    with pytest.raises(Interrupted, match="mgk resume"):
        run_pipeline("textmodel", out=broken, overrides=overrides, sink=pull)
    resume_run(broken)
    assert heads(broken) == heads(whole)
    assert len(heads(whole)) == 3


def test_a_run_merges_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter on disk, which is the merged one, has the average and not what was trained on."""
    finish, averages, trained = StandardStep.finish, [], []

    def recorded(step: StandardStep) -> None:
        trained.extend(p.detach().clone() for p in step.parameters)
        finish(step)
        averages.extend(p.detach().clone() for p in step.parameters)

    monkeypatch.setattr(StandardStep, "finish", recorded)
    overrides = settings("adamw-schedule-free")
    overrides["phases.plain_text.train"] = {"steps": 5}
    run = tmp_path / "run"
    run_pipeline("textmodel", out=run, overrides=overrides, until="plain_text")
    files = (run / "phases" / "0-plain_text" / "adapter").glob("*.safetensors")
    saved = [tensor for file in files for tensor in load_file(file).values()]
    assert len(averages) == 4
    for average, last in zip(averages, trained, strict=True):
        assert any(s.shape == average.shape and torch.equal(s, average) for s in saved)
        assert not torch.equal(average, last)
