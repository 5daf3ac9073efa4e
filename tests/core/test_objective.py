"""A phase minimises what the owner of its loss type makes, and logs that objective's figures."""

import types

import pytest
import torch

import mgk
from mgk_core.contract.errors import ConfigError, InputError, PluginError
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_core.contract.specs import LossSpec, Spec
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.model.digest import base_digest

PHASE = {
    "adapter": {"type": "lora", "rank": 8, "targets": ["layer1", "layer3"]},
    "optimizer": {"type": "sgd", "lr": 1e-2},
    "train": {"steps": 6, "batch_size": 8, "log_every": 4, "eval_every": 3},
}


class Scaled(Objective):
    """The base's own loss times a factor, which is the same as a learning rate times it under SGD."""

    def __init__(self, ctx, factor):
        self.ctx, self.factor, self.prepared = ctx, factor, 0

    def prepare(self):
        self.prepared += 1

    def batch(self, rows):
        return self.ctx.data.train.batch(rows), torch.tensor([float(r) for r in rows])

    def loss(self, batch):
        assert self.prepared == 1
        total, count = self.ctx.bundle.loss(batch[0])
        return ObjectiveLoss(total * self.factor, count, {"row": batch[1]})

    def dev(self):
        return [(batch, torch.zeros(1)) for batch in self.ctx.data.dev]


def hooks_for(make, cls=LossSpec):
    """Return the installed plugins and one whose loss ``demo`` makes ``make(ctx)``."""

    @hookimpl
    def mgk_register_specs(registry):
        registry.add("loss", "demo", cls)

    @hookimpl
    def mgk_make_objective(ctx):
        return make(ctx)

    plugin = types.ModuleType("demo_module")
    plugin.mgk_register_specs = mgk_register_specs
    plugin.mgk_make_objective = mgk_make_objective
    return Hooks(load_plugins(extra=[("demo", plugin)]))


def trained(hooks=None, lr=1e-2, micro=8, **loss):
    """Return (digest of the merged base, events) of one phase on the reference network."""
    bundle = mgk.load_base("reference", device="cpu")
    data = mgk.load_data(bundle, "teacher", seed=1, size=64, items=24)
    events = []
    phase = {
        **PHASE,
        "optimizer": {"type": "sgd", "lr": lr},
        "step": {"type": "standard", "gradients": "autograd"},
        "train": {**PHASE["train"], "micro_batch": micro},
        **({"loss": loss} if loss else {}),
    }
    mgk.run_phase(bundle, data, phase, hooks=hooks, sink=events.append)
    return base_digest(bundle.model), events


def test_the_objective_is_what_the_phase_minimises():
    """Half the loss moves the weights as half the learning rate does, and twice the loss does not."""
    half = hooks_for(lambda ctx: Scaled(ctx, 0.5))
    assert trained(half, type="demo")[0] == trained(lr=5e-3)[0]
    assert trained(half, type="demo")[0] != trained()[0]


@pytest.mark.parametrize("micro", [8, 3])
def test_its_figures_are_logged_as_means_over_the_examples(micro):
    """However a batch is split, the logged mean is that of all examples since the last event."""
    seen = []

    class Watched(Scaled):
        def batch(self, rows):
            seen.extend(rows)
            return super().batch(rows)

    _, events = trained(
        hooks_for(lambda ctx: Watched(ctx, 1.0)), micro=micro, type="demo"
    )
    steps = [e for e in events if e["event"] == "step"]
    # Four steps of eight rows, then two; the checkpoints' own reading adds none.
    assert [e["step"] for e in steps] == [4, 6]
    assert steps[0]["figures"]["row"] == pytest.approx(sum(seen[:32]) / 32)
    assert steps[1]["figures"]["row"] == pytest.approx(sum(seen[32:48]) / 16)


def test_dev_is_measured_by_the_objective():
    """The loss on dev is the objective's, not the base's own."""
    plain = [e["loss"] for e in trained(lr=5e-3)[1] if e["event"] == "dev"]
    half = hooks_for(lambda ctx: Scaled(ctx, 0.5))
    found = [e["loss"] for e in trained(half, type="demo")[1] if e["event"] == "dev"]
    assert found == pytest.approx([loss / 2 for loss in plain])


def test_a_loss_of_the_wrong_form_names_the_plugin():
    """A total that is not a scalar, or a figure with a gradient, is the plugin's fault."""

    class Vector(Scaled):
        def loss(self, batch):
            found = super().loss(batch)
            return ObjectiveLoss(found.total.expand(2), found.count)

    class Attached(Scaled):
        def loss(self, batch):
            found = super().loss(batch)
            return ObjectiveLoss(found.total, found.count, {"x": found.total})

    for cls, word in ((Vector, "total"), (Attached, "gradient")):
        with pytest.raises(PluginError, match=word) as caught:
            trained(hooks_for(lambda ctx, cls=cls: cls(ctx, 1.0)), type="demo")
        assert caught.value.plugin == "demo"


def test_a_loss_checks_its_data_before_anything_is_trained():
    """What `LossSpec.check` raises comes before the first step, and unknown keys are refused."""

    class Picky(LossSpec):
        def check(self, data, bundle):
            raise InputError("needs pairs")

    with pytest.raises(InputError, match="needs pairs"):
        trained(hooks_for(lambda ctx: None, Picky), type="demo")
    with pytest.raises(ConfigError, match="beta"):
        trained(type="likelihood", beta=0.1)
    (broken,) = load_plugins(extra=[("plain", plain_plugin())]).broken
    assert "LossSpec" in broken.error


def test_a_loss_whose_hook_is_missing_is_not_taken_for_the_bases_own():
    """A plugin that registers a loss and does not make it is named."""
    hooks = hooks_for(lambda ctx: None)
    del hooks.plugins.objects["demo"].mgk_make_objective
    plugin = hooks.plugins.objects["demo"]
    with pytest.raises(PluginError, match="mgk_make_objective") as caught:
        trained(Hooks(load_plugins(extra=[("demo", plugin)])), type="demo")
    assert caught.value.plugin == "demo"


def plain_plugin():
    """A plugin that registers a loss whose class is not a `LossSpec`."""

    @hookimpl
    def mgk_register_specs(registry):
        registry.add("loss", "plain", Spec)

    plugin = types.ModuleType("plain_module")
    plugin.mgk_register_specs = mgk_register_specs
    return plugin
