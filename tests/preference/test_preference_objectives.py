"""What losses of pairs and answers promise beside their formulas: memory, splits, reference, noise."""

import attrs
import pytest
import torch
from preference_rows import (
    ANSWERS,
    PAIRS,
    AnswerRows,
    PairRows,
    Rows,
    WeightedRows,
    small_bundle,
)

from mgk_core.contract.bundle import Choice, OptionScores, Probe, Tokens
from mgk_core.contract.errors import InputError
from mgk_core.contract.peers import answering
from mgk_core.host.hooks import installed_hooks
from mgk_preference import chunks
from mgk_preference.formulas import log1mexp
from mgk_preference.metric import evaluate
from mgk_retention.examples import keep_examples
from mgk_retention.kept import REPLAY
from mgk_retention.specs import ReplaySpec
from mgk_text.trainset import LabelledRows

EXAMPLES = (*(p.chosen for p in PAIRS), Tokens((2, 9, 8, 7, 6), (2, 9, 8, 7, 6)))
CASES = (
    {"type": "dpo"},
    {"type": "orpo"},
    {"type": "simpo", "cpo_alpha": 0.5},
    {"type": "kto"},
    {"type": "distill", "likelihood_weight": 1.0},
    {"type": "likelihood", "label_smoothing": 0.1},
    {"type": "likelihood", "prompt_weight": 0.3},
)


@pytest.fixture
def rows(bundle):
    return {
        "dpo": PairRows(bundle, [p.chosen for p in PAIRS]),
        "kto": AnswerRows(bundle, [a.answer for a in ANSWERS]),
        "texts": Rows(bundle, EXAMPLES),
    }


def data_for(rows, case):
    """Return the training set that a loss reads."""
    kind = {"orpo": "dpo", "simpo": "dpo"}.get(case["type"], case["type"])
    return rows.get(kind, rows["texts"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_no_tensor_of_all_logits_is_made(rows, objective, monkeypatch, case):
    """No tensor with the vocabulary's width has more rows than a chunk, forward or backward."""
    monkeypatch.setattr(chunks, "ROWS", 3)
    ctx = objective(data_for(rows, case), **case)
    batch, seen = ctx.batch(range(4)), Widths(320)
    with seen:
        total, _ = ctx.loss(batch)
        torch.autograd.grad(total, ctx.adapter.parameters())
    positions = sum(len(e.ids) - 1 for e in EXAMPLES[:4])
    # The head itself goes through the vocabulary in blocks of at least 512 entries: one here.
    if case.get("label_smoothing") or case["type"] == "distill":
        assert seen.most == 3 < positions
    else:
        assert seen.graph == 0


def test_the_measure_sees_whole_logits(bundle, adapter):
    """What the test above must not find is found where all logits are made at once."""
    with Widths(320) as seen:
        found = bundle.predictions(bundle.pack(EXAMPLES))
        found.logits(slice(None)).log_softmax(-1).gather(1, found.tokens[:, None]).sum()
    assert seen.most == len(found.tokens)
    assert seen.graph > 0


class Widths(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the most rows of a tensor of a given width, and how many such tensors autograd keeps."""

    def __init__(self, width):
        super().__init__()
        self.width, self.most, self.graph = width, 0, 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self.hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.hooks.__exit__(*error)

    def _pack(self, tensor):
        if tensor.dim() == 2 and tensor.shape[1] == self.width:
            self.graph += (
                tensor.shape[0] != 64
            )  # the head's own weight is (V, D) or (D, V)
        return tensor

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        wide = isinstance(out, torch.Tensor) and out.dim() == 2
        if wide and out.shape[1] == self.width and "log_softmax" in str(function):
            self.most = max(self.most, out.shape[0])
        return out


@pytest.mark.parametrize(
    "case", [CASES[0], CASES[5], CASES[6]], ids=["dpo", "smooth", "prompt"]
)
def test_a_step_does_not_depend_on_how_it_is_split(rows, objective, case):
    """Sums and counts of micro-batches add up to those of the whole batch."""
    ctx = objective(data_for(rows, case), **case)
    whole = ctx.loss(ctx.batch(range(4)))
    parts = [ctx.loss(ctx.batch(part)) for part in ([0], [1, 2], [3])]
    for i in (0, 1):
        added = sum(part[i] for part in parts)
        torch.testing.assert_close(added, whole[i], rtol=1e-5, atol=1e-5)


def test_dpo_begins_at_log_two(bundle, adapter, rows, objective):
    """Where the adapter changes nothing, every pair's loss is log 2 and no margin is there."""
    for name, parameter in bundle.model.named_parameters():
        if parameter.requires_grad and name.endswith("lora_b"):
            parameter.data.zero_()
    ctx = objective(rows["dpo"], type="dpo")
    with adapter.disabled():
        total, count = ctx.loss(ctx.batch(range(4)))
    assert float(total / count) == pytest.approx(0.693147, abs=1e-5)


def test_the_reference_is_kept_and_checked(rows, objective, tmp_path):
    """The file is read again bit for bit; one of other examples, another base or damaged is not."""
    first = objective(rows["dpo"], type="dpo")
    path = tmp_path / "files" / "reference.safetensors"
    kept, table = path.read_bytes(), reference_of(first)
    again = objective(rows["dpo"], type="dpo")
    assert torch.equal(reference_of(again), table)
    assert path.read_bytes() == kept

    moved = first.bundle.model.model.layers[0].mlp.up_proj.weight
    moved.data += 0.05
    other = reference_of(objective(rows["dpo"], type="dpo"))
    assert not torch.equal(other, table)
    moved.data -= 0.05
    path.write_bytes(kept[: len(kept) // 2])
    back = reference_of(objective(rows["dpo"], type="dpo"))
    torch.testing.assert_close(back, table, rtol=1e-5, atol=1e-5)


def reference_of(ctx):
    """Return the reference of all pairs."""
    return ctx.objective.objective.reference.of(range(8))


def test_dev_is_the_held_out_pairs(bundle, rows, objective):
    """Dev batches have both answers and a reference of their own, as many pairs as a micro-batch."""
    held_out = PairRows(bundle, [p.chosen for p in PAIRS[:3]], pairs=PAIRS[:3])
    ctx = objective(rows["dpo"], held_out, type="dpo")
    batches = ctx.dev_batches()
    assert [batch.pairs for batch in batches] == [2, 1]
    found = [ctx.loss(batch) for batch in batches]
    same = [ctx.loss(ctx.batch(part)) for part in ([0, 1], [2])]
    assert torch.equal(
        torch.stack([f[0] for f in found]), torch.stack([f[0] for f in same])
    )


def test_kto_takes_a_pair_as_a_good_and_a_bad_answer(rows, objective):
    """Both answers of each pair come into a batch, with their labels."""
    ctx = objective(rows["dpo"], type="kto")
    batch = ctx.batch([0, 2])
    assert batch.desirable.tolist() == [True, False, True, False]
    assert float(ctx.loss(batch)[1]) == 4


def test_noise_is_there_in_training_only_and_repeats_with_the_seed(rows, objective):
    """NEFTune changes the loss of a training model, by the random state alone, never that of an evaluated one."""
    ctx = objective(rows["dpo"], type="dpo", neftune_noise_alpha=8.0)
    plain = objective(rows["dpo"], type="dpo")
    batch = ctx.batch(range(4))
    assert torch.equal(ctx.loss(batch)[0], plain.loss(batch)[0])
    ctx.model.train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(ctx.loss(batch)[0])
    ctx.model.eval()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], plain.loss(batch)[0])


def test_a_prompt_counts_with_its_weight(bundle, rows, objective):
    """The loss is that of answers and prompts, added by hand: answers 1, prompts 0.3."""
    ctx = objective(rows["texts"], type="likelihood", prompt_weight=0.3)
    total, count = ctx.loss(ctx.batch(range(5)))
    answers = bundle.loss(bundle.pack(EXAMPLES))
    everything = bundle.loss(bundle.pack([Tokens(e.ids, e.ids) for e in EXAMPLES]))
    for found, i in ((total, 0), (count, 1)):
        expected = 0.7 * answers[i] + 0.3 * everything[i]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tokens_count_with_the_weights_of_their_data(bundle, context, objective):
    """The mean is weighted by token; equal weights give the plain likelihood; none may be there twice."""
    sizes = [sum(label != -100 for label in e.labels[1:]) for e in EXAMPLES]
    weights = [[0.5 + i + j for j in range(n)] for i, n in enumerate(sizes)]
    ctx = objective(WeightedRows(bundle, EXAMPLES, weights=weights), type="likelihood")
    total, count = ctx.loss(ctx.batch([3, 1]))
    nll = -bundle.predictions(bundle.pack([EXAMPLES[3], EXAMPLES[1]])).logprobs()
    given = torch.tensor([*weights[3], *weights[1]])
    torch.testing.assert_close(total, (nll * given).sum())
    assert float(count) == float(given.sum())
    with pytest.raises(InputError, match="prompt_weight"):
        context(
            WeightedRows(bundle, EXAMPLES, weights=weights),
            type="likelihood",
            prompt_weight=0.1,
        )


def test_another_directory_teaches(
    bundle, adapter, rows, context, monkeypatch, tmp_path
):
    """A teacher with the same vocabulary is loaded as the base is; one with another is refused."""
    hooks, teacher = installed_hooks(), small_bundle(seed=7)
    monkeypatch.setattr(
        hooks, "build_model", lambda spec, device: teacher, raising=False
    )
    ctx = context(rows["texts"], type="distill", teacher=str(tmp_path))
    from attrs import evolve

    base = hooks.spec("base", {"type": "hf", "id": "tiny-gemma"})
    ctx = evolve(ctx, config=evolve(ctx.config, base=base))
    with answering(hooks):
        ctx.objective = hooks.make_objective(ctx)
    total, count = ctx.loss(ctx.batch(range(5)))
    student = (
        bundle.predictions(ctx.batch(range(5))).logits(slice(None)).log_softmax(-1)
    )
    taught = (
        teacher.predictions(ctx.batch(range(5))).logits(slice(None)).log_softmax(-1)
    )
    expected = (taught.exp() * (taught - student)).sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert float(count) == len(student)
    monkeypatch.setattr(teacher, "tokenizer", Vocabulary())
    with pytest.raises(InputError, match="vocabulary"):
        hooks.make_objective(ctx)


class Vocabulary:
    """A tokenizer with other words."""

    def get_vocab(self):
        return {"another": 0}


def test_log1mexp_is_accurate_at_both_ends():
    """Near 0, where 1 − eˣ cancels, and far from it; the gradient is finite at both."""
    x = torch.tensor([-1e-6, -0.1, -0.6931, -0.7, -20.0], requires_grad=True)
    found = log1mexp(x)
    expected = torch.log(-torch.expm1(x.detach().double()))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(gradient).all()


class Scores:
    """A bundle whose scores are known."""

    def score(self, items):
        return [
            OptionScores((-2.0, -8.0), (2, 4), (2, 4)),  # per token −1 and −2
            OptionScores((-9.0, -6.0), (3, 3), (3, 3)),  # −3 and −2
            OptionScores((-4.0, -4.0), (2, 2), (2, 2)),  # a tie
        ][: len(items)]


def test_the_metric_counts_pairs_whose_chosen_answer_is_likelier():
    """Per token, a tie as wrong, the margin with its standard error."""
    item = Choice((1,), ((2,), (3,)), 0)
    probe = Probe("preference", "p", "preference", (item,) * 3, higher_is_better=True)
    score = evaluate(Scores(), probe)
    assert score.per_item == (1.0, 0.0, 0.0)
    assert score.value == pytest.approx(1 / 3)
    assert score.extra["margin"] == pytest.approx(0.0)
    assert score.extra["margin_stderr"] == pytest.approx(1 / 3**0.5)
    assert score.extra["margin_whole"] == pytest.approx(1.0)
    wrong = (item, Choice((1,), ((2,), (3,), (4,)), 0))
    with pytest.raises(InputError, match="item 1: expected a pair"):
        evaluate(Scores(), attrs.evolve(probe, items=wrong))


class SingleScores:
    """A bundle whose scores of single answers are known, one token each."""

    def score(self, items):
        return [
            OptionScores((-float(item.options[0][0]),), (1,), (1,)) for item in items
        ]


def labelled(good, bad):
    """Return a probe of single answers with these negative log-likelihoods."""
    items = [Choice((1,), ((n,),), 0) for n in good]
    items += [Choice((1,), ((n,),), -1) for n in bad]
    return Probe("p", "p", "preference", tuple(items), higher_is_better=True)


def test_the_metric_of_single_answers_is_the_area_under_the_curve():
    """Equal to scikit-learn's; a tie counts half; the error is of good and bad answers both."""
    from sklearn.metrics import roc_auc_score

    good, bad = (1, 2, 5, 3), (4, 6, 5)
    score = evaluate(SingleScores(), labelled(good, bad))
    labels, scores = [1] * 4 + [0] * 3, [-n for n in (*good, *bad)]
    assert score.value == pytest.approx(roc_auc_score(labels, scores))
    assert score.n == len(score.per_item) == 4
    assert score.per_item[2] == pytest.approx(1.5 / 3)
    variance = torch.tensor(score.per_item).var() / 4
    losing = torch.tensor([3 / 4, 4 / 4, 3.5 / 4]).var() / 3
    assert score.stderr == pytest.approx(float((variance + losing).sqrt()))
    with pytest.raises(InputError, match="all 2 that are scored are good"):
        evaluate(SingleScores(), labelled((1, 2), ()))


def test_what_is_replayed_of_labelled_answers_are_the_good_ones(bundle, context):
    """A bad answer has no labels in a batch, so no later phase learns it by replay."""
    rows = LabelledRows.of_answers(bundle, ANSWERS)
    ctx = context(rows, type="kto")
    kept = keep_examples(ctx, ReplaySpec(type="replay", share=1.0))
    good = [a.answer for a in ANSWERS if a.desirable]
    lengths = kept[f"{REPLAY}ids/shapes"].flatten().tolist()
    assert sorted(lengths) == sorted(len(e.ids) for e in good)


@pytest.mark.parametrize("case", CASES[:4], ids=lambda c: c["type"])
def test_learning_prefers_the_chosen_answers(bundle, adapter, rows, objective, case):
    """After some steps the margin of every pair has grown, and the loss has fallen."""
    ctx = objective(data_for(rows, case), **case)
    batch = ctx.batch(range(len(ctx.data.train)))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    before, losses = margins(bundle), []
    for _ in range(15):
        total, count = ctx.loss(batch)
        losses.append(float((total / count).detach()))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(a > b for a, b in zip(margins(bundle), before, strict=True))


@torch.no_grad()
def margins(bundle):
    """Return how much likelier the chosen answer of each pair is, in nats."""
    found = []
    for pair in PAIRS:
        chosen, rejected = (
            float(bundle.predictions(bundle.pack([e])).logprobs().sum())
            for e in (pair.chosen, pair.rejected)
        )
        found.append(chosen - rejected)
    return found
