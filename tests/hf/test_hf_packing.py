"""Packed and separate sequences: the same logits, losses, scores and gradients."""

import pytest
import torch

from mgk_core.contract.bundle import Choice, Tokens
from mgk_hf.batch import IGNORED, TokenBatch, pack, pad, predictors, split

FAMILIES = (
    "gemma3",
    "llama",
    "qwen2",
    "mistral",
    "gpt2",
    "granite",
    "gemma2",
    "gemma3-multimodal",
)
PACKING = tuple(f for f in FAMILIES if f != "gemma2")


def close(got, expected):
    """fp32's own rounding: two orders of summation differ by a few units per layer."""
    assert (got - expected).abs().max() <= 64 * torch.finfo(
        torch.float32
    ).eps * expected.abs().max().clamp(min=1)


def separate(model, sequence):
    """Logits of one sequence alone, through transformers' own forward."""
    return model(input_ids=torch.tensor([sequence])).logits[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_and_separate_logits_agree(make_bundle, sequences, name):
    """Several sequences in one row give the logits that each gives alone, sliding windows included."""
    bundle = make_bundle(name)
    expected = torch.cat([separate(bundle.model, s) for s in sequences])
    batch = bundle.pack([Tokens(s, s) for s in sequences])
    mask = bundle.valid(batch)
    everything = torch.arange(batch.input_ids.numel())
    got = bundle.outputs(batch, everything if mask is None else everything[mask])
    close(got, expected)


@pytest.mark.parametrize("name", PACKING)
def test_these_families_share_rows(make_bundle, sequences, name):
    """Families whose attention mgk may provide are packed without padding."""
    bundle = make_bundle(name)
    batch = bundle.pack([Tokens(s, s) for s in sequences])
    assert batch.input_ids.shape == (1, sum(len(s) for s in sequences))


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_one_by_one(make_bundle, sequences, name):
    """Options behind one copy of the question score as each option alone behind the question."""
    bundle = make_bundle(name)
    items = [Choice(s[:6], (s[6:8], s[6:12], s[2:5]), 0) for s in sequences]
    for item, scores in zip(items, bundle.score(items), strict=True):
        for option, logprob in zip(item.options, scores.logprob, strict=True):
            rows = separate(bundle.model, item.prompt + option).log_softmax(-1)
            expected = sum(
                float(rows[len(item.prompt) - 1 + i, t]) for i, t in enumerate(option)
            )
            assert logprob == pytest.approx(expected, abs=1e-4)
        assert scores.tokens == tuple(len(o) for o in item.options)


@pytest.mark.parametrize("name", ["gemma3", "gemma2"])
def test_the_learnt_option_scores_are_those_of_scoring(make_bundle, sequences, name):
    """Means per token of what `score` sums, from packed rows and, where a model cannot pack, from padded ones."""
    bundle = make_bundle(name)
    items = [Choice(s[:6], (s[6:8], s[6:12], s[2:5]), 0) for s in sequences]
    expected = [
        p / n
        for found in bundle.score(items)
        for p, n in zip(found.logprob, found.tokens, strict=True)
    ]
    assert bundle.option_logprobs(items).tolist() == pytest.approx(expected, rel=1e-4)


def test_score_respects_the_budget_and_the_order(make_bundle, sequences):
    """Small groups give the same scores in the order of the items."""
    bundle = make_bundle()
    items = [Choice(s[:6], (s[6:9], s[9:11]), 0, nbytes=(1, 2)) for s in sequences]
    whole = bundle.score(items)
    bundle.budget = 64
    for a, b in zip(whole, bundle.score(items), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert b.bytes == (1, 2)


def test_the_largest_group_is_named(make_bundle, sequences):
    """The items that take most room together, of the probe's own kind; all where the budget is enough."""
    bundle = make_bundle()
    examples, items = (
        [Tokens(s, s) for s in sequences],
        [Choice(s[:6], (s[6:9], s[9:11]), 0) for s in sequences],
    )
    assert (
        len(bundle.together(examples)) == len(bundle.together(items)) == len(sequences)
    )
    bundle.budget = max(len(s) for s in sequences)
    assert bundle.together(examples) == [max(examples, key=lambda e: len(e.ids))]
    bundle.budget = 24
    assert len(bundle.together(items)) == 2  # eleven positions each


def test_gradients_do_not_depend_on_packing(make_bundle, sequences):
    """The summed loss has the same gradient from a packed row and from padded rows."""
    bundle = make_bundle()
    weights = [
        p for n, p in bundle.model.named_parameters() if n.endswith("v_proj.weight")
    ]
    for weight in weights:
        weight.requires_grad_(requires_grad=True)
    labelled = [(s, s) for s in sequences]
    losses = [bundle.loss(batch) for batch in (pack(labelled), pad(labelled))]
    first, second = (torch.autograd.grad(total, weights) for total, _ in losses)
    assert losses[0][1] == losses[1][1] == sum(len(s) - 1 for s in sequences)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["gemma3", "gemma2"])
def test_padding_is_never_in_the_loss(make_bundle, sequences, name):
    """More padding, or other tokens in it, change neither loss nor count."""
    bundle = make_bundle(name)
    plain = pad([(s, s) for s in sequences])
    wide = pad(
        [(s, s) for s in sequences] + [(tuple(range(4, 90)), (IGNORED,) * 86)],
        pad_id=17,
    )
    a, b = bundle.loss(plain), bundle.loss(wide)
    assert a[1] == b[1]
    assert a[0].item() == pytest.approx(b[0].item(), rel=1e-5)


def test_a_segments_first_token_is_never_learnt():
    """Nothing predicts a first token, not even the end of the sequence before it."""
    batch = pack([((5, 6, 7), (5, 6, 7)), ((8, 9), (8, 9))])
    where, labels = predictors(batch)
    assert where.tolist() == [0, 1, 3]
    assert labels.tolist() == [6, 7, 9]
    forced = TokenBatch(
        batch.input_ids, batch.input_ids, batch.position_ids, batch.segment_ids
    )
    assert predictors(forced)[1].tolist() == [6, 7, 9]


def test_split_is_the_inverse_of_pack():
    """A packed row can be taken apart into padded rows for models that cannot pack."""
    sequences = [((5, 6, 7), (IGNORED, 6, 7)), ((8, 9), (IGNORED, 9))]
    a, b = split(pack(sequences)), pad(sequences)
    assert a.input_ids.equal(b.input_ids)
    assert a.labels.equal(b.labels)


@pytest.mark.parametrize("bad", [((), ()), ((1, 2), (1,))])
def test_a_malformed_sequence_is_refused(bad):
    """Empty sequences and labels of another length are errors, not silent shifts."""
    with pytest.raises(ValueError, match="labels"):
        pack([bad])


def test_generation_ignores_left_padding(make_bundle, sequences):
    """Prompts of different lengths generate together what each generates alone, and the stop is cut."""
    bundle = make_bundle()
    prompts = [s[:7] for s in sequences[:2]] + [sequences[2][:4]]
    together = bundle.generate(prompts, max_new_tokens=6)
    alone = [bundle.generate([p], max_new_tokens=6)[0] for p in prompts]
    assert together == alone
    stop = alone[0][2]
    assert (
        bundle.generate(prompts[:1], max_new_tokens=6, stop=[stop])[0]
        == alone[0][: alone[0].index(stop)]
    )
