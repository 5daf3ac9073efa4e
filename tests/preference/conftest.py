"""A small Gemma with a trained adapter on it, and phases that learn preferences."""

import pytest
import torch
from preference_rows import small_bundle

import mgk
from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.settings import PhaseConfig, RunConfig, TrainSettings
from mgk_core.contract.specs import Spec
from mgk_core.host.hooks import installed_hooks


@pytest.fixture
def bundle():
    return small_bundle()


@pytest.fixture
def adapter(bundle):
    """A LoRA with alpha ≠ r on weights of several shapes, its B trained."""
    made = mgk.attach(
        bundle.model, "lora", rank=4, alpha=6, targets=["*k_proj", "*o_proj", "*down_proj"]
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture
def context(bundle, adapter, tmp_path):
    """Return a function that makes a phase's context for a loss and data."""

    def make(train, held_out=None, **loss):
        spec = installed_hooks().spec("loss", loss)
        none = Spec(type="none")
        phase = PhaseConfig(
            name="p", data=none, adapter=none, optimizer=none, step=none, merge=none,
            loss=spec, train=TrainSettings(batch_size=4, micro_batch=2),
        )  # fmt: skip
        config = RunConfig(name="r", base=none, phases=(phase,))
        data = PhaseData(train, held_out=held_out)
        spec.check(data, bundle)
        return PhaseContext(
            config=config, phase=phase, index=0, bundle=bundle, device=bundle.device,
            directory=tmp_path, adapter=adapter, data=data,
        )  # fmt: skip

    return make


@pytest.fixture
def objective(context):
    """Return a function that makes a prepared objective."""

    def make(train, held_out=None, **loss):
        ctx = context(train, held_out, **loss)
        ctx.objective = installed_hooks().make_objective(ctx)
        if ctx.objective is not None:
            ctx.objective.prepare()
        return ctx

    return make
