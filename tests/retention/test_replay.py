"""Replay and self-distillation: what is kept, and that a step sees the same again after a resume."""

import pytest
import torch

from mgk_core.contract.bundle import PhaseData, Tokens
from mgk_core.contract.errors import InputError
from mgk_core.contract.sampling import steps_of
from mgk_retention.collect import collect
from mgk_retention.examples import as_tensors, from_tensors, generated, keep_examples
from mgk_retention.kept import REPLAY, Past
from mgk_retention.replay import distil_term, kept_batches, replay_term
from mgk_retention.specs import DistilSpec, ReplaySpec

CPU = torch.device("cpu")


def test_examples_come_back_as_they_were(small):
    """Tensors of any shape and token rows of any length survive being kept."""
    bundle = small.Bundle(small.network())
    examples = bundle.unpack(small.rows(5).batch(range(5)))
    back = from_tensors(as_tensors(examples), type(examples[0]), CPU)
    assert all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        for a, b in zip(examples, back, strict=True)
    )
    texts = [
        Tokens((3, 4, 5), (-100, 4, 5), 7),
        Tokens((9,), (9,)),
        Tokens((1, 2), (-100, -100)),
    ]
    assert from_tensors(as_tensors(texts), Tokens, CPU) == texts


def test_share_and_seed_decide_what_is_kept(small, context):
    """A share of the rows, at least sixteen (of 0 none), each row once, the same at every call, others in another phase."""
    data = small.rows(400)
    ctx = context(small.network(), {"replay": {}}, data=data)

    def kept(share):
        found = keep_examples(ctx, ReplaySpec(type="replay", share=share))[
            f"{REPLAY}inputs/values"
        ].view(-1, 6)
        return [int((data.inputs == row).all(1).nonzero()) for row in found]

    assert len(kept(0.25)) == len(set(kept(0.25))) == 100
    assert len(kept(0.01)) == 16
    assert not keep_examples(ctx, ReplaySpec(type="replay", share=0.0))
    first = kept(0.25)
    assert kept(0.25) == first
    ctx.index = 1
    assert kept(0.25) != first


def test_calibration_stands_for_the_base(small, context):
    """For the base, examples come from the calibration batches."""
    ctx = context(small.network(), {"replay": {}})
    known = small.rows(30, seed=9)
    ctx.base_phase, ctx.data = (
        True,
        PhaseData(train=ctx.data.train, calibration=(known.batch(range(30)),)),
    )
    found = collect(ctx)[f"{REPLAY}inputs/values"].view(-1, 6)
    assert sorted(found[:, 0].tolist()) == sorted(known.inputs[:, 0].tolist())


@pytest.fixture
def past(small, context):
    """Two earlier phases that kept all of very unequal numbers of examples."""
    kept = {}
    for number, n in enumerate((20, 200)):
        ctx = context(
            small.network(), {"replay": {"share": 1.0}}, data=small.rows(n, seed=number)
        )
        kept[f"old{number}"] = collect(ctx)
    return Past(small.remembered(**kept), CPU)


def test_batches_are_a_function_of_the_step(small, context, past):
    """Asked in any order, also by a new process, a step's batch is the same; phases take part equally often."""
    ctx = context(small.network(), {"replay": {}})
    one, other = (
        kept_batches(ctx, past, 50, "replay"),
        kept_batches(ctx, past, 50, "replay"),
    )
    batches = [one(step) for step in range(40)]
    assert all(
        torch.equal(other(step).inputs, batches[step].inputs) for step in (7, 0, 39)
    )
    assert not torch.equal(batches[0].inputs, batches[1].inputs)
    few = small.rows(20, seed=0).inputs
    from_few = sum(
        int((few == row).all(1).any()) for batch in batches for row in batch.inputs
    )
    # 2000 draws with p = ½: six standard deviations are 134
    assert abs(from_few - 1000) < 134


def test_replay_is_the_mean_loss_of_kept_examples(small, context, past):
    """The term is strength · loss / count of that step's batch, with the adapter live, and has its gradient."""
    ctx = context(small.network(), {"replay": {}})
    ctx.adapter = small.random_adapter(ctx.model)
    spec = ReplaySpec(type="replay", strength=0.5, batch=8)
    value = replay_term(ctx, past, spec)(3)
    total, count = ctx.bundle.loss(kept_batches(ctx, past, 8, "replay")(3))
    assert value.item() == pytest.approx(0.5 * (total / count).item())
    assert any(
        g.abs().sum() > 0 for g in torch.autograd.grad(value, ctx.adapter.parameters())
    )


@pytest.mark.parametrize(("batch", "often"), [(1, False), (500, True)])
def test_examples_that_are_seen_too_often_are_told(small, context, past, batch, often):
    """In the phase's notes, once, with the number: steps · batch, half of it from the smaller pool of 20."""
    ctx = context(small.network(), {"replay": {}})
    for _ in range(2):
        replay_term(ctx, past, ReplaySpec(type="replay", batch=batch))
    steps = steps_of(
        len(ctx.data.train),
        ctx.phase.train.batch_size,
        ctx.phase.train.epochs,
        ctx.phase.train.steps,
    )
    assert (
        kept_batches(ctx, past, batch, "replay").times(steps) == steps * batch / 2 / 20
    )
    told = [note for note in ctx.notes if "learnt by heart" in note]
    assert len(told) == (steps * batch / 40 > 4)
    assert bool(told) == often


def test_without_anything_kept_there_is_no_term(small, context):
    """The first phase of a base without calibration text trains as it would."""
    ctx = context(small.network(), {"replay": {}})
    assert replay_term(ctx, Past((), CPU), ReplaySpec(type="replay")) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distance": "squared"},
        {"level": "layers"},
        {"on": "kept"},
        {"on": "calibration"},
    ],
)
def test_the_teacher_is_the_base(small, context, past, options):
    """An untrained adapter is at distance zero from its base; a trained one is not, and feels it."""
    import mgk

    for trained in (False, True):
        ctx = context(small.network(), {"naive": {}})
        ctx.data = PhaseData(
            train=ctx.data.train, calibration=(small.rows(8, seed=4).batch(range(8)),)
        )
        ctx.adapter = (
            small.random_adapter(ctx.model)
            if trained
            else mgk.attach(ctx.model, "lora", rank=2)
        )
        value = distil_term(ctx, past, DistilSpec(type="self-distillation", **options))(
            0
        )
        assert (value.item() > 1e-4) if trained else abs(value.item()) < 1e-6
        gradients = torch.autograd.grad(
            value, ctx.adapter.parameters(), allow_unused=True
        )
        assert any(g is not None and g.abs().sum() > 1e-4 for g in gradients) == trained


def test_kl_of_outputs_is_torchs(small, context, past):
    """KL(teacher ‖ student), mean over positions, against the probabilities written out."""
    ctx = context(small.network(), {"naive": {}})
    ctx.adapter = small.random_adapter(ctx.model)
    batch = small.rows(8, seed=4).batch(range(8))
    ctx.data = PhaseData(train=ctx.data.train, calibration=(batch,))
    value = distil_term(
        ctx, past, DistilSpec(type="self-distillation", on="calibration", strength=2.0)
    )(0)
    student = ctx.bundle.outputs(batch).softmax(-1)
    with ctx.adapter.disabled():
        teacher = ctx.bundle.outputs(batch).softmax(-1)
    expected = 2.0 * (teacher * (teacher / student).log()).sum(-1).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_missing_calibration_is_told(small, context, past):
    """Distilling on calibration text that nobody gave says what to do."""
    ctx = context(small.network(), {"naive": {}})
    with pytest.raises(InputError, match="needs calibration text"):
        distil_term(ctx, past, DistilSpec(type="self-distillation", on="calibration"))


class Parrot:
    """A language model that repeats the last token it was given."""

    tokenizer, model, device = None, None, CPU
    loss = outputs = score = valid = save = pack = unpack = staticmethod(
        lambda *_: None
    )

    def generate(self, prompts, *, max_new_tokens, stop=()):
        return [[p[-1]] * max_new_tokens for p in prompts]


def test_self_generated_replay_keeps_only_the_first_tokens():
    """Of an example its beginning remains; what follows is the model's own, and all of it is learnt."""
    texts = [Tokens((3, 4, 5, 6, 7), (-100, -100, -100, 6, 7))]
    made = generated(
        Parrot(),
        texts,
        ReplaySpec(type="replay", source="generated", prompt_tokens=2, new_tokens=3),
    )
    assert made == [Tokens((3, 4, 4, 4, 4), (3, 4, 4, 4, 4))]


def test_networks_without_tokens_cannot_generate(small, context):
    """Self-generated replay of numbers is refused with the way out."""
    ctx = context(small.network(), {"replay": {"source": "generated"}})
    with pytest.raises(InputError, match="use source = 'kept'"):
        collect(ctx)


def test_a_bundle_that_cannot_unpack_is_named(small, context):
    """A model plugin without `unpack` gets a message with the method's name."""
    ctx = context(small.network(), {"replay": {}})
    ctx.bundle = Parrot()
    del Parrot.unpack
    with pytest.raises(InputError, match="'unpack' and 'pack'"):
        collect(ctx)
