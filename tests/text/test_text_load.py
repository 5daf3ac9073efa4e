"""From a spec to training set, batches and probes."""

import json
import math
from types import SimpleNamespace

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mgk_core.contract.bundle import Choice, Tokens
from mgk_core.contract.errors import DataError, InputError
from mgk_text import cache, lengths, packing
from mgk_text.cache import TokenCache, tokenised
from mgk_text.encode import Encoder
from mgk_text.generation import character_f1, evaluate
from mgk_text.load import load
from mgk_text.options import Distractors
from mgk_text.records import Entry
from mgk_text.specs import DictionarySpec, McqSpec, PlainTextSpec
from mgk_text.splits import held_out
from mgk_text.templates import DictionaryTemplate
from mgk_validation.losses import perplexity
from mgk_validation.options import option_metric

DATA = "package:mgk_phases/data/korean_medical"
SIZES = st.lists(st.integers(1, 32), min_size=1, max_size=60)


def files(folder):
    return {s: f"{DATA}/{folder}/{s}.jsonl" for s in ("train", "dev", "test")}


def example(size, start=0):
    """An example of a beginning token and ``size`` learnt ones."""
    body = tuple(range(start + 10, start + 10 + size))
    return Tokens((2, *body), (-100, *body), 3 * size)


@pytest.fixture(scope="module")
def shipped(bundle, tmp_path_factory):
    """The three phases' data on the tiny base, by type."""
    specs = [
        PlainTextSpec(
            type="text",
            **files("text"),
            base_probes={"base-ko": f"{DATA}/base/probe_ko.jsonl"},
            calibration=(
                f"{DATA}/base/calibration_ko.jsonl",
                f"{DATA}/base/calibration_en.jsonl",
            ),
            length=256,
            cache=False,
        ),
        DictionarySpec(type="dictionary", **files("dictionary"), cache=False),
        McqSpec(type="mcq", **files("mcq"), cache=False),
    ]
    return {spec.type: (spec, load(spec, bundle)) for spec in specs}


@given(sizes=SIZES)
def test_packing_keeps_every_example_whole_and_fills_rows(sizes):
    """Every example stands once in one row, no row is over its length, and no two rows fit into one."""
    examples = [
        example(n - 1, 100 * i) if n > 1 else Tokens((i,), (-100,))
        for i, n in enumerate(sizes)
    ]
    rows = packing.pack(examples, 32)
    assert sorted(e.ids for row in rows for e in row) == sorted(e.ids for e in examples)
    used = sorted(sum(len(e.ids) for e in row) for row in rows)
    assert used[-1] <= 32
    assert len(used) < 2 or used[0] + used[1] > 32 or len(used) == 1


def test_packing_refuses_what_does_not_fit():
    """An example longer than a row is never cut in packing."""
    with pytest.raises(ValueError, match="does not fit"):
        packing.pack([example(40)], 32)


@given(size=st.integers(1, 200), limit=st.integers(2, 50), head=st.sampled_from([0, 1]))
def test_splitting_keeps_every_token_and_byte(size, limit, head):
    """The pieces' bodies joined are the text, each begins with the beginning token if there is one, bytes add up."""
    whole = (
        example(size)
        if head
        else Tokens(example(size).ids[1:], (-100, *example(size).ids[2:]), 3 * size)
    )
    parts = lengths.split(whole, limit, head)
    assert tuple(i for p in parts for i in p.ids[head:]) == whole.ids[head:]
    assert all(
        p.ids[:head] == whole.ids[:head] and head < len(p.ids) <= limit for p in parts
    )
    assert all(p.labels == (-100, *p.ids[1:]) for p in parts)
    assert sum(p.nbytes for p in parts) == whole.nbytes


def test_what_is_too_long_is_split_dropped_or_told_never_cut():
    """Each way of overflow counts what it did; error names the place, the length and the setting."""
    examples, places = [example(5), example(20)], ["a.jsonl:1", "a.jsonl:2"]
    split = lengths.fit(examples, 16, "split", what="train", places=places)
    assert (
        len(split.examples),
        "1 over max_length 16 split, 3 pieces in all" in split.note,
    ) == (
        3,
        True,
    )
    drop = lengths.fit(examples, 16, "drop", what="train", places=places)
    assert (drop.examples, "1 over max_length 16 dropped" in drop.note) == (
        (examples[0],),
        True,
    )
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: 21 tokens, and length is 16; raise it"
    ):
        lengths.fit(examples, 16, "error", what="train", places=places, key="length")


def test_the_report_states_tokens_and_what_is_learnt():
    """Counts of the report are those of the examples."""
    note = lengths.report([example(4), example(9)], "train")
    assert note.startswith(
        "train: 2 examples, 15 tokens, 13 of them learnt; tokens each: median 8"
    )


def test_text_rows_are_packed_up_to_their_length(shipped):
    """A training row of text holds at most ``length`` tokens; all but beginning tokens is learnt."""
    spec, data = shipped["text"]
    batch = data.train.batch(range(len(data.train)))
    assert all(sum(len(e.ids) for e in row) <= spec.length for row in data.train.rows)
    learnt = int((batch.labels != -100).sum())
    segments = len(batch.segment_ids.unique())
    assert learnt == batch.input_ids.numel() - segments


@pytest.mark.parametrize("ends", [True, False])
def test_documents_end_with_eos_in_training_alone(bundle, write, ends):
    """Each text's last piece ends with a learnt EOS, whether packed or split; probes have none."""
    rows = [{"text": f"{i}번째 글이다. " + "두통은 흔하다. " * i} for i in range(12)]
    spec = PlainTextSpec(
        type="text", train=write("a.jsonl", rows), test=write("b.jsonl", rows[:3]), length=32,
        end_documents=ends,
    )  # fmt: skip
    data, eos = load(spec, bundle), bundle.tokenizer.eos_token_id
    pieces = [piece for row in data.train.rows for piece in row]
    assert len(pieces) > len(rows)
    assert sum(piece.labels.count(eos) for piece in pieces) == (
        len(rows) if ends else 0
    )
    assert all(eos not in piece.ids[:-1] for piece in pieces)
    assert not any(eos in item.ids for probe in data.probes for item in probe.items)


def test_labels_are_the_answer_and_its_end_only(shipped, bundle):
    """Of a dictionary example the term and the end of sequence are learnt, nothing of the prompt."""
    _, data = shipped["dictionary"]
    first = json.loads(
        (_path("dictionary", "train")).read_text(encoding="utf-8").split("\n")[0]
    )
    (tokens,) = data.train.rows[0]
    learnt = [i for i in tokens.labels if i != -100]
    assert bundle.tokenizer.decode(learnt) == f" {first['ko']}<eos>"
    assert (
        bundle.tokenizer.decode(tokens.ids)
        == f"<bos>영어: {first['en']}\n한국어: {first['ko']}<eos>"
    )


def _path(folder, split):
    from mgk_text.sources import find

    return find(f"{DATA}/{folder}/{split}.jsonl")[0].path


def test_batches_are_pure(shipped):
    """The same rows give the same batch, whatever was asked before."""
    _, data = shipped["mcq"]
    one = data.train.batch([3, 1])
    data.train.batch([0])
    two = data.train.batch([3, 1])
    assert torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(one.labels, two.labels)


def test_probes_have_their_split_metric_and_phase(shipped):
    """Each type offers its probes for dev and test, the base's bound to the base, generated ones at the ends only."""
    found = {p.name: p for _, data in shipped.values() for p in data.probes}
    assert {
        n: (p.metric, p.split, p.phase, p.when, len(p.items)) for n, p in found.items()
    } == {
        "text-dev": ("perplexity", "dev", "", "always", 17),
        "text": ("perplexity", "test", "", "always", 21),
        "base-ko": ("perplexity", "test", "base", "always", 64),
        "dictionary-dev": ("option_logprob", "dev", "", "always", 45),
        "dictionary-margin-dev": ("option_margin", "dev", "", "always", 45),
        "dictionary-accuracy-dev": ("option_accuracy", "dev", "", "always", 45),
        "dictionary": ("option_logprob", "test", "", "always", 120),
        "dictionary-margin": ("option_margin", "test", "", "always", 120),
        "dictionary-accuracy": ("option_accuracy", "test", "", "always", 120),
        "dictionary-generated": ("generation", "test", "", "ends", 40),
        "mcq-dev": ("option_logprob", "dev", "", "always", 46),
        "mcq-margin-dev": ("option_margin", "dev", "", "always", 46),
        "mcq-accuracy-dev": ("option_accuracy", "dev", "", "always", 46),
        "mcq": ("option_logprob", "test", "", "always", 120),
        "mcq-margin": ("option_margin", "test", "", "always", 120),
        "mcq-accuracy": ("option_accuracy", "test", "", "always", 120),
        "mcq-generated": ("generation", "test", "", "ends", 40),
    }
    assert (
        len({p.digest for p in found.values()}) == len(found) - 8
    )  # margin and accuracy share the items
    assert found["mcq-accuracy"].chance == 0.2


def test_dev_verify_and_calibration_are_batches_of_the_base(shipped, bundle):
    """Dev batches, two to four verification batches and calibration batches go through the base's loss."""
    _, data = shipped["text"]
    assert 2 <= len(data.verify) <= 4
    for batches in (data.dev, data.verify, data.calibration):
        total, count = bundle.loss(batches[0])
        assert math.isfinite(float(total / count))
    texts = {int(s) for b in data.calibration for s in [b.segment_ids.max() + 1]}
    assert sum(len(b.segment_ids.unique()) for b in data.calibration) == 48, texts
    assert any(
        n.startswith("calibration: 48 texts, 3,072 tokens; 48 cut to 64")
        for n in data.notes
    )


def test_the_validation_metrics_score_the_probes(shipped, bundle):
    """Perplexity and option metrics take the probes' items as they are."""
    _, text = shipped["text"]
    probe = attrs.evolve(text.probes[0], items=text.probes[0].items[:2])
    score = perplexity(bundle, probe)
    assert score.n == 2
    assert 100 < score.value < 1e5  # random weights over 2048 tokens
    assert score.extra["nll_per_byte"] > 0
    _, mcq = shipped["mcq"]
    own = option_metric(
        bundle, attrs.evolve(mcq.probes[0], items=mcq.probes[0].items[:3])
    )
    assert own.n == 3
    assert own.value < 0


def test_generated_answers_are_judged(shipped, bundle):
    """The generation metric generates, decodes and judges every item; figures lie between 0 and 1."""
    for name, extra in (
        ("dictionary", {"f1", "empty"}),
        ("mcq", {"lenient", "invalid", "invalid_lenient", "formatted"}),
    ):
        _, data = shipped[name]
        probe = next(p for p in data.probes if p.metric == "generation")
        score = evaluate(bundle, attrs.evolve(probe, items=probe.items[:4]))
        assert score.n == len(score.per_item) == 4
        assert set(score.extra) == extra
        assert all(0 <= v <= 1 for v in (score.value, *score.extra.values()))
        assert score.chance == (None if name == "dictionary" else 0.2)
        items = probe.items[:4]
        assert [a.prompt for a in score.answers] == [
            i.encoder.decode(i.prompt) for i in items
        ]


@pytest.mark.parametrize("name", ["dictionary", "mcq"])
def test_a_model_that_answers_rightly_scores_full_marks(shipped, name):
    """With a base that says the right answer, exact match, F1 and strict accuracy are 1, invalid ones 0."""
    _, data = shipped[name]
    probe = next(p for p in data.probes if p.metric == "generation")
    options = next(
        p for p in data.probes if p.metric == "option_logprob" and p.split == "test"
    )
    right = {c.prompt: list(c.options[c.answer]) for c in options.items}
    echo = SimpleNamespace(
        model=nn.Identity(), generate=lambda prompts, **_: [right[p] for p in prompts]
    )
    score = evaluate(echo, probe)
    assert (score.value, score.stderr) == (1.0, 0.0)
    assert score.extra.get("f1", 1.0) == 1.0
    assert score.extra.get("invalid", 0.0) == 0.0


def test_character_f1_counts_characters():
    """F1 of 심방조동 for 심방세동 is three of four characters either way; blanks and case do not count."""
    assert character_f1("심방조동", "심방세동") == 0.75
    assert character_f1(" Beta 차단제", "beta차단제") == 1.0
    assert character_f1("", "심방세동") == 0.0


def test_distractors_come_from_the_same_specialty_and_split():
    """Wrong options differ from the right one and each other; other splits and specialties only fill up."""
    template = DictionaryTemplate("en-ko")
    same = [Entry(f"가{i}", f"a{i}", specialty="x") for i in range(3)] + [
        Entry("딴것", "other", specialty="y")
    ]
    other = [Entry("나1", "b1", specialty="x"), Entry("가1", "dup", specialty="x")]

    def draw(seed):
        return Distractors.of(template, same, other, 4, seed).draw(same[0])

    drawn = draw(0)
    assert drawn.options[drawn.right] == "가0"
    assert sorted(drawn.options) == sorted(["가0", "가1", "가2", "나1", "딴것"])
    assert draw(0) == drawn
    places = {draw(seed).right for seed in range(20)}
    assert len(places) > 2


def test_places_of_right_options_are_spread(shipped):
    """Over the dictionary's test items every place holds the right option within two standard errors of a fifth."""
    _, data = shipped["dictionary"]
    items = next(p for p in data.probes if p.name == "dictionary").items
    assert all(isinstance(i, Choice) and len(set(i.options)) == 5 for i in items)
    error = (0.2 * 0.8 / len(items)) ** 0.5
    for place in range(5):
        assert (
            abs(sum(i.answer == place for i in items) / len(items) - 0.2) <= 2 * error
        )


def test_tokenised_data_is_read_back_from_disk(encoders, monkeypatch):
    """What the cache gives back is what was made; a second process does not tokenise again."""
    encoder, pairs = (
        encoders["plain"],
        [("물음:", "답"), ("영어: a\n한국어:", "가나다")],
    )
    made = tokenised(encoder, pairs, TokenCache())
    monkeypatch.setattr(cache, "_memory", {})
    again = TokenCache()
    found = again.get(encoder, pairs, lambda: pytest.fail("tokenised again"))
    assert [example for group in found for example in group] == made
    assert again.hits == 1


@pytest.mark.parametrize("change", ["text", "style", "tokenizer", "ends"])
def test_the_cache_key_covers_data_template_and_tokenizer(encoders, change):
    """Another text, another style or another tokenizer is another key."""
    plain, chat = encoders["plain"], encoders["chat"]
    pairs = [("물음:", "답")]
    base = cache.key(plain, pairs)
    other = {
        "text": lambda: cache.key(plain, [("물음:", "답.")]),
        "style": lambda: cache.key(chat, pairs),
        "tokenizer": lambda: cache.key(
            Encoder(chat.conversation.styled("plain")), pairs
        ),
        "ends": lambda: cache.key(attrs.evolve(plain, ends=True), pairs),
    }[change]()
    assert other != base
    assert cache.key(plain, list(pairs)) == base


def test_a_damaged_cache_file_is_made_again(encoders, monkeypatch):
    """A file cut short is not read as data."""
    encoder, pairs = encoders["plain"], [("", "본문이다.")]
    made = tokenised(encoder, pairs, TokenCache())
    (path,) = cache.folder().glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    monkeypatch.setattr(cache, "_memory", {})
    again = TokenCache()
    assert tokenised(encoder, pairs, again) == made
    assert again.hits == 0


def test_without_cache_nothing_is_written(encoders):
    """cache = false leaves the disk alone."""
    tokenised(encoders["plain"], [("", "본문")], TokenCache(on_disk=False))
    assert not cache.folder().exists()


@given(share=st.floats(0.05, 0.5), seed=st.integers(0, 5))
def test_held_out_shares_are_fixed_and_keep_groups_together(share, seed):
    """A share is a pure function of group and seed; no group is on both sides; order does not matter."""
    entries = [Entry(f"{i}", "x", group=f"g{i // 3}") for i in range(300)]
    kept, held = held_out(entries, share, f"dev {seed}")
    assert not {e.group for e in kept} & {e.group for e in held}
    assert set(held_out(entries[::-1], share, f"dev {seed}")[1]) == set(held)
    error = (share * (1 - share) / 100) ** 0.5
    assert abs(len(held) / 300 - share) <= 5 * error


def test_shares_are_taken_where_no_file_is_named(bundle, write):
    """With one file, dev_share and test_share make the other splits, and the probes with them."""
    rows = [{"ko": f"용어{i}", "en": f"term{i}"} for i in range(120)]
    spec = DictionarySpec(
        type="dictionary",
        train=write("a.jsonl", rows),
        dev_share=0.1,
        test_share=0.2,
        generate=0,
    )
    data = load(spec, bundle)
    names = {p.name: len(p.items) for p in data.probes}
    metrics = ("", "-margin", "-accuracy")
    assert set(names) == {
        f"dictionary{metric}{split}" for metric in metrics for split in ("", "-dev")
    }
    assert len(data.train) + names["dictionary"] + names["dictionary-dev"] == 120


def test_bad_rows_of_all_splits_are_told_together(bundle, write):
    """One error carries the bad rows of train, dev, base probes and calibration."""
    bad = write("bad.jsonl", "x\n")
    good = write("good.jsonl", [{"text": "본문"}])
    spec = PlainTextSpec(
        type="text", train=good, dev=bad, base_probes={"base": bad}, calibration=bad
    )
    with pytest.raises(DataError) as caught:
        load(spec, bundle)
    assert len(caught.value.problems) == 3


def test_learning_to_reason_needs_reasonings(bundle, write):
    """target = reasoning refuses questions without one, and never makes one up."""
    row = {"question": "?", "A": "가", "B": "나", "answer": "A"}
    path = write("a.jsonl", [row | {"reasoning": "까닭"}, row])
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        load(McqSpec(type="mcq", train=path, target="reasoning"), bundle)


def test_directions_make_one_example_each(bundle, write):
    """Two directions of an entry are two examples; each holds only the fields that it gives and asks for."""
    path = write("a.jsonl", [{"ko": "가", "en": "a", "definition": "뜻이다"}])
    data = load(
        DictionarySpec(
            type="dictionary", train=path, directions=("ko-en", "definition-ko")
        ),
        bundle,
    )
    said = [
        bundle.tokenizer.decode(row[0].ids, skip_special_tokens=True)
        for row in data.train.rows
    ]
    assert said == ["한국어: 가\n영어: a", "뜻: 뜻이다\n용어: 가"]


def test_data_needs_a_language_model(write):
    """A base that is no language model is refused with the reason."""
    with pytest.raises(InputError, match="needs a language model"):
        load(PlainTextSpec(type="text", train=write("a.txt", "본문")), object())


def test_nothing_to_train_on_is_refused(bundle, write):
    """No source, and a file whose rows were all dropped, are errors."""
    with pytest.raises(InputError, match="train: expected a file"):
        load(PlainTextSpec(type="text"), bundle)
    path = write("a.jsonl", [{"text": "본문 " * 200}])
    with pytest.raises(InputError, match="no training examples are left"):
        load(PlainTextSpec(type="text", train=path, overflow="drop", length=16), bundle)
