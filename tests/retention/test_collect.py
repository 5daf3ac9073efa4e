"""What is collected of a phase, and that it is what the formulas mean."""

import pytest
import torch
from torch import nn

from mgk_core.contract.bundle import PhaseData
from mgk_core.contract.errors import InputError
from mgk_retention.collect import collect
from mgk_retention.kept import FACTORS, FISHER, INPUTS, OUTPUTS, REPLAY, Past
from mgk_retention.specs import RETENTION


def test_moments_are_means_over_positions(small, context):
    """C is the mean of x xᵀ, G of g gᵀ with g the gradient of the summed loss, F of g² x²."""
    model, data = small.network(), small.rows()
    kept = collect(context(model, {"drift-guard": {"sketch": 0}, "ewc": {}}, data=data))
    x, n = data.inputs, len(data)
    hidden = torch.tanh(x @ model[0].weight.mT + model[0].bias)
    hidden = torch.tanh(hidden @ model[2].weight.mT + model[2].bias)
    g = hidden @ model[4].weight.mT + model[4].bias - data.targets
    assert torch.allclose(kept[f"{INPUTS}0.weight/matrix"], x.mT @ x / n, atol=1e-5)
    assert torch.allclose(
        kept[f"{INPUTS}4.weight/matrix"], hidden.mT @ hidden / n, atol=1e-5
    )
    assert torch.allclose(kept[f"{OUTPUTS}4.weight/matrix"], g.mT @ g / n, atol=1e-4)
    assert torch.allclose(
        kept[f"{FISHER}4.weight"], g.square().mT @ hidden.square() / n, atol=1e-4
    )


def test_only_what_later_phases_name_is_collected(small, context):
    """The last phase collects nothing; without a method nothing is collected; each method has its own part."""
    model = small.network()
    ctx = context(model, {"drift-guard": {}})
    ctx.index = 1
    assert collect(ctx) == {}
    assert collect(context(model, {"naive": {}})) == {}
    parts = {
        name: {k.split("/")[1] for k in collect(context(model, {name: {}}))}
        for name in RETENTION
    }
    assert parts == {
        "drift-guard": {"inputs", "outputs"}, "covariance-merge": {"inputs"}, "designed-a": {"inputs"},
        "replay": {"replay"}, "ewc": {"fisher"}, "o-lora": set(), "self-distillation": set(), "naive": set(),
        # without an adapter there is no delta to keep
        "task-arithmetic": set(), "magmax": set(), "ties": set(), "opcm": set(), "ella": set(),
        "clora": set(), "intruder-repair": set(),
    }  # fmt: skip


def test_o_lora_keeps_the_merged_adapters_a(small, context):
    """What later adapters shall be orthogonal to is the A of this phase's."""
    model = small.network()
    ctx = context(model, {"o-lora": {}})
    ctx.adapter = small.random_adapter(model)
    kept = collect(ctx)
    assert torch.equal(kept[f"{FACTORS}2.weight"], ctx.adapter.factors("2.weight").a)


def test_a_recovery_that_may_add_replay_needs_examples(small, context, hooks):
    """``train-on`` with replay in it counts as naming replay."""
    from mgk_core.config.resolve import structure_spec

    spec = structure_spec(
        hooks.plugins.registry,
        "recover",
        {"type": "train-on", "retention": {"replay": {"share": 0.5}}},
    )
    kept = collect(context(small.network(), {"naive": {}}, recover=(spec,)))
    assert any(k.startswith(REPLAY) for k in kept)


def test_base_is_looked_at_through_calibration(small, context):
    """For the base the calibration batches count, not the first phase's training data."""
    model, other = small.network(), small.rows(16, seed=5)
    ctx = context(model, {"drift-guard": {"sketch": 0}})
    ctx.base_phase = True
    ctx.data = PhaseData(train=ctx.data.train, calibration=(other.batch(range(16)),))
    kept = collect(ctx)
    assert torch.allclose(
        kept[f"{INPUTS}0.weight/matrix"], other.inputs.mT @ other.inputs / 16, atol=1e-5
    )


def test_looking_ends_after_max_tokens(small, context):
    """Batches of eight: after seventeen positions are wanted, twenty-four were seen."""
    data, seen = small.rows(40), []
    original = data.batch
    data.batch = lambda rows: seen.append(len(rows)) or original(rows)
    collect(context(small.network(), {"drift-guard": {"max_tokens": 17}}, data=data))
    assert seen == [8, 8, 8]


class Parallel(nn.Module):
    """Two layers with the same inputs, as queries and keys have."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)) * self.k(x))


def test_shared_inputs_are_kept_once(small, context):
    """The second of two layers with the same inputs points to the first, and is read as it."""
    kept = collect(context(Parallel(), {"drift-guard": {"sketch": 0}}))
    assert f"{INPUTS}k.weight/matrix" not in kept
    past = Past(small.remembered(base=kept), torch.device("cpu"))
    (q,), (k,) = past.moments(INPUTS, "q.weight"), past.moments(INPUTS, "k.weight")
    assert torch.equal(q.dense(), k.dense())
    assert f"{OUTPUTS}k.weight/matrix" in kept


def test_sketches_are_small_and_close(small, context):
    """A sketch of all directions is the whole moment up to bf16's rounding of its factor."""
    model = small.network()
    whole = Past(
        small.remembered(base=collect(context(model, {"drift-guard": {"sketch": 0}}))),
        torch.device("cpu"),
    )
    kept = collect(context(model, {"drift-guard": {"sketch": 10}}))
    assert kept[f"{INPUTS}2.weight/factor"].dtype == torch.bfloat16
    sketched = Past(small.remembered(base=kept), torch.device("cpu"))
    for name in ("0.weight", "2.weight", "4.weight"):
        for part in (INPUTS, OUTPUTS):
            (a,), (b,) = whole.moments(part, name), sketched.moments(part, name)
            # each entry of the factor is off by at most 2⁻⁹ of itself
            assert (a.dense() - b.dense()).norm() <= 2**-7 * a.dense().norm()


def test_nan_in_old_data_is_told(small, context):
    """Statistics that are not finite are refused with the weight's name."""
    data = small.rows()
    data.inputs[3, 2] = float("nan")
    with pytest.raises(
        InputError,
        match=r"0\.weight: its inputs or gradients on old data are not finite",
    ):
        collect(context(small.network(), {"drift-guard": {}}, data=data))


@pytest.mark.parametrize(
    ("name", "options"),
    [("drift-guard", {"sketch": 3}), ("drift-guard", {"sketch": 0}), ("covariance-merge", {"sketch": 3, "tail": "diagonal"}), ("ewc", {})],
)  # fmt: skip
def test_planned_bytes_are_the_kept_bytes(small, context, name, options):
    """What `mgk plan` says is what the statistics file holds."""
    model = small.network()
    ctx = context(model, {name: options})
    kept = collect(ctx)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.dim() == 2}
    found = sum(t.numel() * t.element_size() for t in kept.values())
    (spec,) = ctx.phase.retention
    assert found == spec.kept_bytes(shapes)
